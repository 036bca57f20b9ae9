//! The agent as a service of systemd: its protocol, and its unit.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader, ErrorKind},
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use sidecar_agent::privileges::NEEDS;
use sidecar_tests::{Client, DEADLINE, programs, require_root, skip};

use crate::fixture::registry_only;

/// What a service manager gets to hear.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Manager {
    fn new() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path)?;
        Ok(Self {
            socket,
            path,
            _dir: dir,
        })
    }

    /// The next message, one assignment a line.
    fn next(&self, patience: Duration) -> anyhow::Result<Option<String>> {
        self.socket.set_read_timeout(Some(patience))?;
        let mut buffer = [0; 4096];
        match self.socket.recv(&mut buffer) {
            Ok(length) => Ok(Some(String::from_utf8(buffer[..length].to_vec())?)),
            // A child of the tests may end meanwhile.
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                Ok(None)
            }
            Err(error) => Err(error).context("receiving"),
        }
    }

    /// The first message that contains this line.
    fn wait_for(&self, line: &str) -> anyhow::Result<String> {
        let end = Instant::now() + DEADLINE;
        let mut heard = Vec::new();
        while Instant::now() < end {
            if let Some(message) = self.next(DEADLINE)? {
                if message.lines().any(|found| found == line) {
                    return Ok(message);
                }
                heard.push(message);
            }
        }
        bail!("no {line} among {heard:?}")
    }
}

/// How often the agent must be heard of, at least.
const WATCHDOG: Duration = Duration::from_millis(400);

#[test]
fn a_service_manager_hears_when_it_is_ready_that_it_lives_and_that_it_ends() -> anyhow::Result<()> {
    require_root!();
    let manager = Manager::new()?;
    let mut lab = registry_only()?;
    lab.start_agent_with(|agent| {
        agent
            .env("NOTIFY_SOCKET", &manager.path)
            .env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string())
    })?;
    let ready = manager.wait_for("READY=1")?;
    ensure!(
        ready.contains("STATUS=1 of 1 workloads captured; configuration applied 1 times"),
        "{ready}"
    );
    // It was true.
    let refused = Client::tcp("10.96.0.4:9080".parse()?)
        .place(lab.inside())
        .connect()?;
    ensure!(!refused.connected, "ready before anything was captured");
    for _ in 0..5 {
        manager.wait_for("WATCHDOG=1")?;
    }
    fs::remove_file(lab.config_dir().join("workload.yaml"))?;
    manager.wait_for("STATUS=0 of 0 workloads captured; configuration applied 2 times")?;
    lab.agent_mut()?.stop()?;
    manager.wait_for("STOPPING=1")?;
    Ok(())
}

/// Stops one thread, as a debugger does, until standard input ends.
const STOP: &str = r#"
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
SEIZE, INTERRUPT, WALL = 0x4206, 0x4207, 0x40000000
thread = int(sys.argv[1])
for request in SEIZE, INTERRUPT:
    if libc.ptrace(request, thread, None, None) < 0:
        sys.exit(os.strerror(ctypes.get_errno()))
os.waitpid(thread, WALL)
print("stopped", flush=True)
sys.stdin.read()
"#;

/// A thread that hangs, until this is dropped.
struct Hanging(Child);

impl Hanging {
    fn new(thread: u32) -> anyhow::Result<Self> {
        let child = Command::new("python3")
            .args(["-c", STOP, &thread.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run python3")?;
        let mut hanging = Self(child);
        let stdout = hanging.0.stdout.take().context("no stdout")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line == "stopped\n", "the thread was not stopped");
        Ok(hanging)
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// The other threads of the agent live, and cannot speak for it.
#[test]
fn one_whose_main_loop_hangs_is_not_heard_of() -> anyhow::Result<()> {
    require_root!();
    let manager = Manager::new()?;
    let mut lab = registry_only()?;
    lab.start_agent_with(|agent| {
        agent
            .env("NOTIFY_SOCKET", &manager.path)
            .env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string())
    })?;
    manager.wait_for("WATCHDOG=1")?;
    let hanging = Hanging::new(lab.agent()?.pid().context("it does not run")?)?;
    // What was sent before.
    let end = Instant::now() + DEADLINE;
    while manager.next(WATCHDOG)?.is_some() {
        ensure!(Instant::now() < end, "it is heard of all the time");
    }
    ensure!(manager.next(WATCHDOG * 2)?.is_none(), "it is heard of");
    drop(hanging);
    manager.wait_for("WATCHDOG=1")?;
    Ok(())
}

pub fn unit_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd/sidecar-agent.service")
}

#[test]
fn the_unit_has_exactly_the_capabilities_of_the_code() -> anyhow::Result<()> {
    let unit = fs::read_to_string(unit_file())?;
    let needed: BTreeSet<&str> = NEEDS.iter().map(|need| need.name).collect();
    for setting in ["CapabilityBoundingSet=", "AmbientCapabilities="] {
        let lines = unit.lines().filter_map(|line| line.strip_prefix(setting));
        let lines: Vec<&str> = lines.collect();
        let [line] = lines[..] else {
            bail!("{setting}: {lines:?}")
        };
        let found: BTreeSet<&str> = line.split_whitespace().collect();
        ensure!(found == needed, "{setting}{line}");
    }
    Ok(())
}

#[test]
fn systemd_accepts_the_unit() -> anyhow::Result<()> {
    if Command::new("systemd-analyze")
        .arg("--version")
        .output()
        .is_err()
    {
        skip!("systemd-analyze");
    }
    let dir = tempfile::tempdir()?;
    let unit = dir.path().join("sidecar-agent.service");
    let program = programs::agent()?.display().to_string();
    // It must be there, for systemd.
    let text = fs::read_to_string(unit_file())?.replace("/usr/bin/sidecar-agent", &program);
    for (text, is_right) in [
        (text.clone(), true),
        (text.replace("Type=notify", "Type=notice"), false),
    ] {
        fs::write(&unit, text)?;
        let output = Command::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .arg(&unit)
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        let about_us: Vec<&str> = said
            .lines()
            .filter(|line| line.contains("sidecar-agent.service"))
            .collect();
        let is_accepted = output.status.success() && about_us.is_empty();
        ensure!(is_accepted == is_right, "{about_us:?}");
    }
    Ok(())
}
