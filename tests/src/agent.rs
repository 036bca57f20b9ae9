//! The agent, as a process.

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    Bpffs, Dns,
    cleanup::{self, Cleanup},
    command::shown,
    poll::{DEADLINE, poll, poll_result},
    programs,
    tempdir::TempDir,
};

/// How long an agent that has ended may take to be heard out.
const LAST_LOGS: Duration = Duration::from_secs(1);

/// How an agent is to be started. Settings are environment variables, so that the other commands
/// of the agent, which have the same, see what `run` sees.
#[derive(Debug)]
pub struct AgentBuilder {
    program: Option<PathBuf>,
    under: Vec<OsString>,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
}

/// An agent with directories and a BPF file system of its own, in the host's namespaces. Ended
/// with SIGTERM when dropped; what it pinned, which goes on capturing, goes with its BPF file system.
#[derive(Debug)]
pub struct Agent {
    program: PathBuf,
    /// A command that `run` is given to as arguments.
    under: Vec<OsString>,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    process: Option<Process>,
    logs: Arc<Mutex<Vec<String>>>,
    bpffs: Bpffs,
    dir: TempDir,
}

/// The running agent. Also ends it when the test is interrupted.
#[derive(Debug)]
struct Process {
    child: Arc<Mutex<Child>>,
    /// Collects its logs until it has closed them.
    reader: JoinHandle<()>,
    _cleanup: Cleanup,
}

/// An agent that stands still. It goes on when this is dropped.
#[must_use = "dropping it has the agent go on"]
#[derive(Debug)]
pub struct Paused {
    _cleanup: Cleanup,
}

/// An agent from which the next one has taken over. Ended when dropped.
#[derive(Debug)]
pub struct Predecessor(Process);

impl Predecessor {
    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// At the deadline.
    pub fn wait(self) -> anyhow::Result<ExitStatus> {
        poll_result(DEADLINE, "the agent before to end", || {
            self.has_ended()?.context("it still runs")
        })
    }

    /// Tells it to end at once (SIGTERM).
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn terminate(&self) -> anyhow::Result<()> {
        let child = self.0.child.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = i32::try_from(child.id())?;
        let pid = Pid::from_raw(pid).context("no process id")?;
        kill_process(pid, Signal::TERM).context("cannot end the agent before")
    }

    /// How it has ended, if it has.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn has_ended(&self) -> anyhow::Result<Option<ExitStatus>> {
        let mut child = self.0.child.lock().unwrap_or_else(PoisonError::into_inner);
        child.try_wait().context("cannot ask for the agent's end")
    }
}

impl Agent {
    /// An agent that reads its configuration from a directory.
    #[must_use]
    pub fn with_config(dir: &Path) -> AgentBuilder {
        Self::builder().env("SIDECAR_AGENT_CONFIG", dir)
    }

    /// An agent that reads its configuration from a cluster.
    #[must_use]
    pub fn with_kubeconfig(file: &Path) -> AgentBuilder {
        Self::builder()
            .env("SIDECAR_AGENT_KUBE", "true")
            .env("SIDECAR_AGENT_KUBECONFIG", file)
    }

    /// An agent that reads its configuration from the cluster whose pod it is: where that is, is told by
    /// its surroundings.
    #[must_use]
    pub fn in_cluster() -> AgentBuilder {
        Self::builder().env("SIDECAR_AGENT_KUBE", "true")
    }

    fn builder() -> AgentBuilder {
        AgentBuilder {
            program: None,
            under: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
        }
        // Its default is one port, and many agents run at a time.
        .env("SIDECAR_AGENT_METRICS_ADDRESS", "127.0.0.1:0")
        // Tests look for plain text in its logs.
        .env("NO_COLOR", "1")
    }

    /// Starts the next agent, with more arguments, which takes over from this one. Waits until it is
    /// the one that answers. Returns the one before, which ends by itself.
    ///
    /// # Errors
    /// When this one does not run, or the next one does not take over.
    pub fn succeed<S: AsRef<OsStr>>(&mut self, args: &[S]) -> anyhow::Result<Predecessor> {
        let before = self.process.take().context("the agent is not running")?;
        let own = std::mem::take(&mut self.args);
        self.args = own.clone();
        self.args.push("--take-over".into());
        self.args
            .extend(args.iter().map(|arg| arg.as_ref().to_owned()));
        let started = self.spawn();
        self.args = own;
        started?;
        let pid = self.pid();
        self.wait_until("the next agent to take over", |status| {
            status["pid"].as_u64() == pid.map(u64::from) && status["generation"].as_u64() > Some(0)
        })?;
        Ok(Predecessor(before))
    }

    /// Starts it, again after [`stop`](Self::stop) or [`kill`](Self::kill), with the directories
    /// it had. Waits until it answers `status`.
    ///
    /// # Errors
    /// When it is running, when it ends instead, or when it does not answer: with its logs.
    pub fn start(&mut self) -> anyhow::Result<()> {
        if self.process.is_some() {
            bail!("the agent is running");
        }
        self.spawn()?;
        self.wait_until("the agent to answer", |_| true)?;
        Ok(())
    }

    /// Starts it and waits for nothing.
    ///
    /// # Errors
    /// When its program cannot be run.
    pub(crate) fn spawn(&mut self) -> anyhow::Result<()> {
        let words = [self.program.as_os_str(), "run".as_ref()];
        let mut words = self.under.iter().map(OsString::as_os_str).chain(words);
        let mut command = Command::new(words.next().context("no program")?);
        command.args(words).args(&self.args).envs(self.env());
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run `{}`", shown(&command)))?;
        let stderr = child.stderr.take().context("the agent has no stderr")?;
        let logs = Arc::clone(&self.logs);
        let reader = thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                logs.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(line);
            }
        });
        let child = Arc::new(Mutex::new(child));
        let cleanup = cleanup::on_drop({
            let child = Arc::clone(&child);
            move || {
                if let Err(error) = end(&child) {
                    eprintln!("the agent did not end well: {error:#}");
                }
            }
        });
        self.process = Some(Process {
            child,
            reader,
            _cleanup: cleanup,
        });
        Ok(())
    }

    /// Ends it with SIGTERM, as a service manager would.
    ///
    /// # Errors
    /// When it is not running, or had to be killed at the deadline.
    pub fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        let process = self.process.take().context("the agent is not running")?;
        end(&process.child)
    }

    /// Kills it, as a crash would.
    ///
    /// # Errors
    /// When it is not running.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        let process = self.process.take().context("the agent is not running")?;
        let mut child = process.child.lock().unwrap_or_else(PoisonError::into_inner);
        child.kill().context("cannot kill the agent")?;
        child.wait().context("cannot wait for the agent")?;
        Ok(())
    }

    /// Leaves of it what a restart of its machine does: it is killed, nothing is pinned, its sockets are
    /// gone. What outlives it is there.
    ///
    /// # Errors
    /// When it is not running, or something of it is in use.
    pub fn lose_machine(&mut self) -> anyhow::Result<()> {
        self.kill()?;
        self.bpffs.replace()?;
        let run_dir = self.run_dir();
        fs::remove_dir_all(&run_dir)
            .and_then(|()| fs::create_dir(&run_dir))
            .with_context(|| format!("cannot empty {}", run_dir.display()))
    }

    /// Has it stand still (SIGSTOP) until what is returned is dropped: nothing that it has not done yet
    /// is done.
    ///
    /// # Errors
    /// When it is not running.
    pub fn pause(&self) -> anyhow::Result<Paused> {
        let pid = self.pid().context("the agent is not running")?;
        let pid = Pid::from_raw(i32::try_from(pid)?).context("no process id")?;
        kill_process(pid, Signal::STOP).context("cannot stop the agent")?;
        Ok(Paused {
            _cleanup: cleanup::on_drop(move || {
                // It may have been killed.
                let _ = kill_process(pid, Signal::CONT);
            }),
        })
    }

    /// Gives the next starts of `run` these arguments, and no others.
    pub fn set_args<S: AsRef<OsStr>>(&mut self, args: impl IntoIterator<Item = S>) {
        self.args = args
            .into_iter()
            .map(|arg| arg.as_ref().to_owned())
            .collect();
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        let process = self.process.as_ref()?;
        Some(
            process
                .child
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .id(),
        )
    }

    /// Runs another command of the agent, which talks to this one: `["explain", ...]`.
    ///
    /// # Errors
    /// When it cannot be started; how it ended is in the output.
    pub fn cli<S: AsRef<OsStr>>(&self, args: &[S]) -> anyhow::Result<Output> {
        let mut command = self.command();
        command.args(args).stdin(Stdio::null());
        command
            .output()
            .with_context(|| format!("cannot run `{}`", shown(&command)))
    }

    /// What `status -o json` prints.
    ///
    /// # Errors
    /// When the command fails, or prints no JSON.
    pub fn status(&self) -> anyhow::Result<Value> {
        let output = self.cli(&["status", "-o", "json"])?;
        if !output.status.success() {
            bail!(
                "`status` failed with {}: {}",
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        serde_json::from_slice(&output.stdout).context("`status -o json` printed no JSON")
    }

    /// Waits until the status satisfies a condition, and returns it.
    ///
    /// # Errors
    /// At the deadline, or when the agent ends: with the last status or error, and the logs.
    pub fn wait_until(
        &self,
        what: &str,
        condition: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let looked = poll_result(DEADLINE, what, || {
            if let Some(status) = self.ended()? {
                // Nothing to wait for any more.
                return Ok(Err(format!("the agent ended with {status}")));
            }
            let status = self.status()?;
            if condition(&status) {
                Ok(Ok(status))
            } else {
                bail!("its status is {status}")
            }
        });
        looked
            .and_then(|seen| seen.map_err(anyhow::Error::msg))
            .with_context(|| {
                format!(
                    "waited for {what}; the agent's logs:\n{}",
                    self.logs().join("\n")
                )
            })
    }

    /// Waits until a line of its logs contains a text, and returns the line.
    ///
    /// # Errors
    /// At the deadline: with the logs.
    pub fn wait_log(&self, text: &str) -> anyhow::Result<String> {
        poll(DEADLINE, &format!("the log line {text:?}"), || {
            self.logs().into_iter().find(|line| line.contains(text))
        })
        .with_context(|| format!("the agent's logs:\n{}", self.logs().join("\n")))
    }

    /// What it has logged so far, over all its runs.
    #[must_use]
    pub fn logs(&self) -> Vec<String> {
        self.logs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The directory of its sockets and state.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// The directory of what outlives it.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Its BPF file system.
    #[must_use]
    pub fn bpffs(&self) -> PathBuf {
        self.bpffs.path().to_owned()
    }

    /// Its program, with the settings it has.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.envs(self.env());
        command
    }

    fn env(&self) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        let env = self.env.iter();
        env.map(|(name, value)| (name.as_os_str(), value.as_os_str()))
    }

    /// How it ended, if it has; all its logs are there then.
    fn ended(&self) -> anyhow::Result<Option<ExitStatus>> {
        let process = self.process.as_ref().context("the agent is not running")?;
        let ended = process
            .child
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .try_wait();
        let ended = ended.context("cannot ask for the agent's end")?;
        if ended.is_some() {
            // Unless a process it has started still has its standard error.
            let _ = poll(LAST_LOGS, "the last logs", || {
                process.reader.is_finished().then_some(())
            });
        }
        Ok(ended)
    }
}

impl AgentBuilder {
    /// Reads the mesh configuration from a file.
    #[must_use]
    pub fn mesh_config(self, file: &Path) -> Self {
        self.env("SIDECAR_AGENT_MESH_CONFIG", file)
    }

    /// Resolves names with a server of the test's.
    #[must_use]
    pub fn dns(self, server: &Dns) -> Self {
        self.env("SIDECAR_AGENT_DNS_SERVERS", server.address().to_string())
    }

    /// Gives `run` more arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Runs this program instead of the agent that is built from the source.
    #[must_use]
    pub fn program(mut self, program: PathBuf) -> Self {
        self.program = Some(program);
        self
    }

    /// Has another program start `run`, which ends in `exec`: `["setpriv", "--no-new-privs"]`.
    #[must_use]
    pub fn under<S: AsRef<OsStr>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.under = words
            .into_iter()
            .map(|word| word.as_ref().to_owned())
            .collect();
        self
    }

    /// Sets an environment variable, for `run` and for [`Agent::cli`].
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Starts the agent and waits until it answers.
    ///
    /// # Errors
    /// As [`Agent::start`]; also when a BPF file system cannot be mounted, mostly for want of root.
    pub fn start(self) -> anyhow::Result<Agent> {
        let mut agent = self.not_started()?;
        agent.start()?;
        Ok(agent)
    }

    /// An agent that is yet to be started, with its directories.
    ///
    /// # Errors
    /// When a BPF file system cannot be mounted, mostly for want of root.
    pub fn not_started(self) -> anyhow::Result<Agent> {
        let program = match self.program.clone() {
            Some(program) => program,
            None => programs::agent()?,
        };
        let dir = TempDir::new("sidecar-agent-test-")?;
        let run_dir = dir.path().join("run");
        fs::create_dir(&run_dir).with_context(|| format!("cannot make {}", run_dir.display()))?;
        let bpffs = Bpffs::mount(&dir.path().join("bpf"))?;
        let builder = self
            .env("SIDECAR_AGENT_RUN_DIR", run_dir)
            .env("SIDECAR_AGENT_STATE_DIR", dir.path().join("state"))
            // Tests that stop it are not to wait for the connections that they hold.
            .env("SIDECAR_AGENT_DRAIN", "1")
            .env("SIDECAR_AGENT_BPFFS", bpffs.path());
        Ok(Agent {
            program,
            under: builder.under,
            args: builder.args,
            env: builder.env,
            process: None,
            logs: Arc::default(),
            bpffs,
            dir,
        })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Its cleanup ends it; before its directories go.
        self.process = None;
    }
}

/// SIGTERM; SIGKILL at the deadline.
fn end(child: &Mutex<Child>) -> anyhow::Result<ExitStatus> {
    let mut child = child.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(status) = child.try_wait().context("cannot ask for the agent's end")? {
        return Ok(status);
    }
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    kill_process(pid.context("the agent has no process id")?, Signal::TERM)
        .context("cannot signal the agent")?;
    let ended = poll_result(DEADLINE, "the agent to end after SIGTERM", || {
        child.try_wait()?.context("it still runs")
    });
    if ended.is_err() {
        child.kill().context("cannot kill the agent")?;
        child.wait().context("cannot wait for the agent")?;
    }
    ended
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::require_root;

    /// Answers, logs, and obeys SIGTERM, like the agent.
    const PRETENDER: &str = r#"#!/bin/sh
case $1 in
status) cat "$SIDECAR_AGENT_RUN_DIR/status" ;;
run)
    test -w "$SIDECAR_AGENT_BPFFS" || exit 3
    if test -n "$REFUSE"; then echo "refuses: $REFUSE" >&2; exit 2; fi
    test -p "$SIDECAR_AGENT_RUN_DIR/never" || mkfifo "$SIDECAR_AGENT_RUN_DIR/never"
    printf '{"args": "%s", "dns": "%s"}' "$*" "$SIDECAR_AGENT_DNS_SERVERS" \
        >"$SIDECAR_AGENT_RUN_DIR/status"
    trap 'echo ending >&2; kill $!; exit 0' TERM
    cat <>"$SIDECAR_AGENT_RUN_DIR/never" >/dev/null 2>&1 &
    echo "started with $SIDECAR_AGENT_CONFIG" >&2
    wait
    ;;
esac"#;

    /// Written by another process: one that this one wrote cannot be run while a child that was
    /// forked meanwhile still has it open for writing (ETXTBSY).
    fn pretender(dir: &Path) -> AgentBuilder {
        let program = dir.join("agent");
        let write = r#"printf %s "$2" >"$1" && chmod +x "$1""#;
        crate::command::output(
            Command::new("sh")
                .args(["-c", write, "sh"])
                .arg(&program)
                .arg(PRETENDER),
        )
        .unwrap();
        Agent::with_config(Path::new("/config")).program(program)
    }

    fn is_mounted(path: &Path) -> bool {
        fs::read_to_string("/proc/self/mountinfo")
            .unwrap()
            .contains(path.to_str().unwrap())
    }

    #[test]
    fn an_agent_starts_stops_and_starts_again() {
        require_root!();
        let dir = tempfile::tempdir().unwrap();
        let dns = Dns::start(None, "127.0.0.1:0".parse().unwrap()).unwrap();
        let mut agent = pretender(dir.path())
            .dns(&dns)
            .args(["--more"])
            .start()
            .unwrap();
        let status = agent
            .wait_until("its arguments", |status| status["args"] == "run --more")
            .unwrap();
        assert_eq!(status["dns"], dns.address().to_string());
        agent.wait_log("started with /config").unwrap();
        let first = agent.pid().unwrap();
        assert!(agent.start().is_err(), "it is running");

        assert!(agent.stop().unwrap().success());
        agent.wait_log("ending").unwrap();
        assert!(agent.stop().is_err(), "it is not running");
        agent.start().unwrap();
        assert_ne!(agent.pid().unwrap(), first);
        agent.kill().unwrap();
        assert_eq!(agent.pid(), None);
        agent.start().unwrap();

        let bpffs = agent.bpffs();
        assert!(is_mounted(&bpffs));
        drop(agent);
        assert!(!is_mounted(&bpffs) && !bpffs.exists());
    }

    #[test]
    fn an_agent_that_refuses_is_reported_with_its_logs() {
        require_root!();
        let dir = tempfile::tempdir().unwrap();
        let error = pretender(dir.path())
            .env("REFUSE", "bad weather")
            .start()
            .unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("refuses: bad weather"), "{text}");
        assert!(text.contains("exit status: 2"), "{text}");
    }
}
