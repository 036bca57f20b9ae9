//! Envoy, as a process.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
};

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::{Access, Bootstrap, PROXY_ID, Stats, UserNamespace, bootstrap::ADMIN_PORT};
use crate::{
    Namespace, Place,
    netns::run_in,
    poll::{DEADLINE, poll, poll_result},
    tempdir::TempDir,
};

/// How many lines of its log are shown when it is dropped: libtest shows them if the test failed.
const SHOWN: usize = 60;

/// How an Envoy is to be started.
#[derive(Debug)]
pub struct EnvoyBuilder<'a> {
    netns: &'a Namespace,
    place: Place<'a>,
    bootstrap: Bootstrap,
    workers: u32,
    net_admin: bool,
    userns: Option<&'a UserNamespace>,
}

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
        EnvoyBuilder {
            netns,
            place: place.netns(netns),
            bootstrap: Bootstrap::default(),
            workers: 1,
            net_admin: false,
            userns: None,
        }
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
        self.dir.path().join("access.log")
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

impl<'a> EnvoyBuilder<'a> {
    /// What it is to do.
    #[must_use]
    pub fn bootstrap(mut self, bootstrap: Bootstrap) -> Self {
        self.bootstrap = bootstrap;
        self
    }

    /// How many workers it has, each with sockets of its own (`SO_REUSEPORT`); one unless set.
    #[must_use]
    pub fn workers(mut self, workers: u32) -> Self {
        self.workers = workers;
        self
    }

    /// Leaves it the one capability that transparent sockets need.
    #[must_use]
    pub fn net_admin(mut self) -> Self {
        self.net_admin = true;
        self
    }

    /// In a user namespace, as that one's user 1337.
    #[must_use]
    pub fn userns(mut self, userns: &'a UserNamespace) -> Self {
        self.userns = Some(userns);
        self
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// As [`Envoy::start`].
    pub fn start(self) -> anyhow::Result<Envoy> {
        let dir = TempDir::new("sidecar-envoy-")?;
        let access = dir.path().join("access.log");
        File::create(&access).with_context(|| format!("cannot make {}", access.display()))?;
        // Envoy, another user, opens it by its path.
        for (path, mode) in [(dir.path(), 0o711), (&*access, 0o666)] {
            fs::set_permissions(path, Permissions::from_mode(mode))
                .with_context(|| format!("cannot open {} to others", path.display()))?;
        }
        let config = self.bootstrap.json(&access).to_string();
        let mut command = self.command();
        command.args(["--config-yaml", &config]);
        command.args(["--concurrency", &self.workers.to_string()]);
        command.args(["--disable-hot-restart", "--log-level", "warning"]);
        // To the access log at once.
        command.args([
            "--file-flush-interval-msec",
            "10",
            "--file-flush-min-size-kb",
            "0",
        ]);
        let mut envoy = Envoy {
            program: command.get_program().to_owned(),
            args: command.get_args().map(ToOwned::to_owned).collect(),
            netns: self.netns.path().to_owned(),
            child: None,
            dir,
        };
        envoy.start()?;
        Ok(envoy)
    }

    /// Envoy at its place as user 1337, without capabilities and without a way to new ones. The
    /// program is run as its standard input: that user may not be allowed to reach where it is.
    fn command(&self) -> Command {
        let (program, more): (_, Vec<OsString>) = match self.userns {
            Some(userns) => {
                let mut user = OsString::from("--user=");
                user.push(userns.path());
                ("nsenter", vec![user, "--".into(), "setpriv".into()])
            }
            None => ("setpriv", Vec::new()),
        };
        let mut command = self.place.command(program);
        let capabilities = if self.net_admin {
            "-all,+net_admin"
        } else {
            "-all"
        };
        command.args(more);
        command.args([
            &format!("--reuid={PROXY_ID}"),
            &format!("--regid={PROXY_ID}"),
            "--clear-groups",
            "--no-new-privs",
            &format!("--inh-caps={capabilities}"),
            &format!("--ambient-caps={capabilities}"),
            &format!("--bounding-set={capabilities}"),
            "--",
            "/proc/self/fd/0",
        ]);
        command
    }
}
