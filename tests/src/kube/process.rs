//! A server of the cluster, as a process.

use std::{
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    cleanup::{self, Cleanup},
    command::shown,
    poll::{DEADLINE, poll_result},
};

/// How many lines of its log are told.
const TOLD: usize = 20;

/// A running server. Ended when dropped, also when the test is interrupted.
#[derive(Debug)]
pub(super) struct Process {
    child: Arc<Mutex<Child>>,
    log: PathBuf,
    _cleanup: Cleanup,
}

impl Process {
    /// Starts a server whose output goes to a file.
    pub fn start(command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(log);
        let file = file.with_context(|| format!("cannot open {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("cannot share a log")?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot run `{}`", shown(command)))?;
        let child = Arc::new(Mutex::new(child));
        let cleanup = cleanup::on_drop({
            let child = Arc::clone(&child);
            move || {
                let mut child = child.lock().unwrap_or_else(PoisonError::into_inner);
                // It has nothing to lose.
                _ = child.kill();
                _ = child.wait();
            }
        });
        Ok(Self {
            child,
            log: log.to_owned(),
            _cleanup: cleanup,
        })
    }

    /// Waits until it does something; not if it ends.
    pub fn wait<T>(
        &self,
        what: &str,
        mut ready: impl FnMut() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        // It takes seconds of computing, and others compute too.
        let done = poll_result(3 * DEADLINE, what, || {
            if let Some(status) = self.child().try_wait().context("cannot ask for its end")? {
                return Ok(Err(anyhow::anyhow!("it ended with {status}")));
            }
            Ok(Ok(ready()?))
        });
        done.and_then(|done| done)
            .with_context(|| format!("waited for {what}; its log ends with:\n{}", self.log()))
    }

    /// Ends it with SIGTERM.
    pub fn stop(self) -> anyhow::Result<()> {
        let pid = i32::try_from(self.child().id())?;
        let pid = Pid::from_raw(pid).context("no process id")?;
        kill_process(pid, Signal::TERM).context("cannot signal a server")?;
        poll_result(3 * DEADLINE, "a server to end", || {
            match self.child().try_wait().context("cannot ask for its end")? {
                Some(_) => Ok(()),
                None => bail!("it still runs"),
            }
        })
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TOLD)..].join("\n")
    }
}
