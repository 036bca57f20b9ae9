//! `sidecar-agent trace`, as a process.

use std::{
    io::{BufRead as _, BufReader, Read},
    process::{Child, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    Agent, DEADLINE,
    cleanup::{self, Cleanup},
    poll::poll_result,
};

/// A client that traces.
#[derive(Debug)]
pub struct Tracer {
    child: Arc<Mutex<Child>>,
    decisions: mpsc::Receiver<String>,
    errors: JoinHandle<Vec<String>>,
    _cleanup: Cleanup,
}

/// How a client ended.
#[derive(Debug)]
pub struct Ended {
    /// The decisions that were not taken before.
    pub decisions: Vec<Value>,
    /// How many it says there were.
    pub count: u64,
    /// How many it says were lost in the kernel.
    pub lost_in_kernel: u64,
    /// How many it says were lost in the agent.
    pub lost_in_agent: u64,
}

impl Tracer {
    /// Starts `trace -o json` with more arguments, and waits until it traces.
    ///
    /// # Errors
    /// When it cannot be started, or ends instead: with what it says.
    pub fn start(agent: &Agent, args: &[&str]) -> anyhow::Result<Self> {
        let mut child = agent
            .command()
            .args(["trace", "-o", "json"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run `trace`")?;
        let stdout = child.stdout.take().context("no stdout")?;
        let stderr = child.stderr.take().context("no stderr")?;
        let child = Arc::new(Mutex::new(child));
        let cleanup = cleanup::on_drop({
            let child = Arc::clone(&child);
            move || {
                let mut child = child.lock().unwrap_or_else(PoisonError::into_inner);
                let _ = child.kill();
                let _ = child.wait();
            }
        });
        let (sender, decisions) = mpsc::channel();
        thread::spawn(move || {
            for line in lines(stdout) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let (says, said) = mpsc::channel();
        let errors = thread::spawn(move || {
            let mut all = Vec::new();
            for line in lines(stderr) {
                let _ = says.send(line.clone());
                all.push(line);
            }
            all
        });
        let first = said
            .recv_timeout(DEADLINE)
            .context("`trace` says nothing")?;
        ensure!(first.starts_with("tracing"), "`trace` says: {first}");
        Ok(Self {
            child,
            decisions,
            errors,
            _cleanup: cleanup,
        })
    }

    /// The next decisions, so many; waits for them.
    ///
    /// # Errors
    /// At the deadline, and when it ends before.
    pub fn take(&self, count: usize) -> anyhow::Result<Vec<Value>> {
        (0..count)
            .map(|number| {
                let line = self.decisions.recv_timeout(DEADLINE);
                let line = line.with_context(|| format!("{number} decisions of {count}"))?;
                serde_json::from_str(&line).context(line)
            })
            .collect()
    }

    /// Interrupts it, as a user does with ^C, and waits for its end.
    ///
    /// # Errors
    /// As [`end`](Self::end).
    pub fn interrupt(self) -> anyhow::Result<Ended> {
        kill_process(self.pid()?, Signal::INT).context("cannot interrupt `trace`")?;
        self.end()
    }

    /// Kills it, and waits until it is gone.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill(self) -> anyhow::Result<()> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        child.kill().context("cannot kill `trace`")?;
        child.wait().context("cannot wait for `trace`")?;
        Ok(())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end well by itself.
    pub fn end(self) -> anyhow::Result<Ended> {
        let status = poll_result(DEADLINE, "`trace` to end", || {
            let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
            child.try_wait()?.context("it still runs")
        })?;
        let errors = self.errors.join().unwrap_or_default();
        ensure!(status.success(), "`trace` ended with {status}: {errors:?}");
        let mut decisions = Vec::new();
        for line in &self.decisions {
            decisions.push(serde_json::from_str(&line).context(line)?);
        }
        let last = errors.last().context("no last word")?;
        let numbers: Vec<u64> = last
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|word| word.parse().ok())
            .collect();
        let &[count, lost_in_kernel, lost_in_agent] = &numbers[..] else {
            bail!("the last word tells no numbers: {last}")
        };
        Ok(Ended {
            decisions,
            count,
            lost_in_kernel,
            lost_in_agent,
        })
    }

    fn pid(&self) -> anyhow::Result<Pid> {
        let child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        pid.context("no process id")
    }
}

fn lines(from: impl Read) -> impl Iterator<Item = String> {
    BufReader::new(from).lines().map_while(Result::ok)
}
