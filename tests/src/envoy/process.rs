//! Envoy, as a process.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
};

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::{Access, EnvoyBuilder, Stats, bootstrap::ADMIN_PORT};
use crate::{
    Namespace, Place,
    netns::run_in,
    poll::{DEADLINE, poll, poll_result},
    tempdir::TempDir,
};

/// How many lines of its log are shown when it is dropped: libtest shows them if the test failed.
const SHOWN: usize = 60;

/// The file in its directory that it writes its access log to.
pub(super) const ACCESS_LOG: &str = "access.log";

/// An Envoy as user 1337. Killed when dropped, and with its cgroup.
#[derive(Debug)]
pub struct Envoy {
    program: OsString,
    args: Vec<OsString>,
    netns: PathBuf,
    child: Option<Child>,
    dir: TempDir,
}

impl Envoy {
    /// In a network namespace, at a place there that need not name it.
    #[must_use]
    pub fn at<'a>(netns: &'a Namespace, place: Place<'a>) -> EnvoyBuilder<'a> {
        EnvoyBuilder::new(netns, place)
    }

    /// Keeps a command that runs the program which is its standard input, and starts it.
    pub(super) fn run(command: &Command, netns: &Namespace, dir: TempDir) -> anyhow::Result<Self> {
        let mut envoy = Self {
            program: command.get_program().to_owned(),
            args: command.get_args().map(ToOwned::to_owned).collect(),
            netns: netns.path().to_owned(),
            child: None,
            dir,
        };
        envoy.start()?;
        Ok(envoy)
    }

    /// Starts it, again after [`stop`](Self::stop) or [`kill`](Self::kill), and waits until it is
    /// ready. Its counters begin at 0.
    ///
    /// # Errors
    /// When it is running, ends instead, or does not become ready: with its log.
    pub fn start(&mut self) -> anyhow::Result<()> {
        ensure!(self.child.is_none(), "Envoy is running");
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_file())
            .context("cannot open Envoy's log")?;
        let program = super::program()?;
        let image =
            File::open(&program).with_context(|| format!("cannot open {}", program.display()))?;
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            // What it runs (see `EnvoyBuilder::command`); it reads nothing from it.
            .stdin(image)
            .stdout(Stdio::null())
            .stderr(log);
        let child = command
            .spawn()
            .with_context(|| format!("cannot run `{}`", self.program.display()))?;
        self.child = Some(child);
        let ready = poll_result(DEADLINE, "Envoy to be ready", || {
            // Nothing to wait for any more.
            if let Some(status) = self.ended()? {
                return Ok(Err(format!("Envoy ended with {status}")));
            }
            Ok(Ok(self.admin("ready").map(drop)?))
        });
        ready
            .and_then(|ready| ready.map_err(anyhow::Error::msg))
            .with_context(|| format!("Envoy's log:\n{}", self.log()))
    }

    /// Ends it with SIGTERM, as Kubernetes does.
    ///
    /// # Errors
    /// When it is not running, or does not end.
    pub fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        let pid = i32::try_from(self.pid()?).ok().and_then(Pid::from_raw);
        kill_process(pid.context("Envoy has no process id")?, Signal::TERM)
            .context("cannot signal Envoy")?;
        let status = poll_result(DEADLINE, "Envoy to end after SIGTERM", || {
            self.ended()?.context("it still runs")
        })?;
        self.child = None;
        Ok(status)
    }

    /// Kills it, as a crash would.
    ///
    /// # Errors
    /// When it is not running.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        let mut child = self.child.take().context("Envoy is not running")?;
        child.kill().context("cannot kill Envoy")?;
        child.wait().context("cannot wait for Envoy")?;
        Ok(())
    }

    /// Its process id.
    ///
    /// # Errors
    /// When it is not running.
    pub fn pid(&self) -> anyhow::Result<u32> {
        Ok(self.child.as_ref().context("Envoy is not running")?.id())
    }

    /// Its counters.
    ///
    /// # Errors
    /// When the admin interface does not answer.
    pub fn stats(&self) -> anyhow::Result<Stats> {
        Ok(Stats::parse(&self.admin("stats")?))
    }

    /// Its counters once no client is connected any more: a loop would still be running.
    ///
    /// # Errors
    /// At the deadline.
    pub fn settled(&self) -> anyhow::Result<Stats> {
        poll_result(DEADLINE, "all connections to Envoy to end", || {
            let stats = self.stats()?;
            ensure!(stats.active() == 0, "{} are there", stats.active());
            Ok(stats)
        })
    }

    /// The access log so far.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn accesses(&self) -> anyhow::Result<Vec<Access>> {
        let file = self.access_file();
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Access::parse(&text)
    }

    /// Waits for a line in the access log.
    ///
    /// # Errors
    /// At the deadline: with the lines there are.
    pub fn access(
        &self,
        what: &str,
        condition: impl Fn(&Access) -> bool,
    ) -> anyhow::Result<Access> {
        poll(DEADLINE, &format!("the access log to show {what}"), || {
            self.accesses()
                .ok()?
                .into_iter()
                .find(|line| condition(line))
        })
        .with_context(|| format!("the access log is {:#?}", self.accesses()))
    }

    fn admin(&self, path: &str) -> anyhow::Result<String> {
        let url = format!("http://127.0.0.1:{ADMIN_PORT}/{path}");
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(DEADLINE))
            .proxy(None)
            .build();
        run_in(&self.netns, || {
            let mut answer = ureq::Agent::from(config)
                .get(&url)
                .header("connection", "close")
                .call()
                .with_context(|| format!("cannot get {url}"))?;
            answer
                .body_mut()
                .read_to_string()
                .with_context(|| format!("cannot read {url}"))
        })?
    }

    fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        let child = self.child.as_mut().context("Envoy is not running")?;
        child.try_wait().context("cannot ask for Envoy's end")
    }

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("envoy.log")
    }

    fn access_file(&self) -> PathBuf {
        self.dir.path().join(ACCESS_LOG)
    }

    fn log(&self) -> String {
        let text = fs::read_to_string(self.log_file()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(SHOWN)..].join("\n")
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        // Seen when the test has failed: libtest keeps it otherwise.
        if let Ok(stats) = self.stats() {
            eprintln!("Envoy took {} connections", stats.all_taken());
        }
        // Killed, it would lose the access log's last lines.
        if self.child.is_some() && self.stop().is_err() {
            let _ = self.kill();
        }
        let accesses = fs::read_to_string(self.access_file()).unwrap_or_default();
        eprintln!("Envoy's log:\n{}\nits access log:\n{accesses}", self.log());
    }
}
