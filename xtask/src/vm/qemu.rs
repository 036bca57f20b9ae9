//! Virtual machines.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use sidecar_vm_init::{CGROUPS, Cgroups, Record};

/// The program that is this processor's machine.
pub const PROGRAM: &str = "qemu-system-x86_64";

/// In MiB: the initramfs and what tests make of memory.
const MEMORY: u32 = 1536;

/// How long a machine may take to begin, where the kernel runs on the processor itself.
const PROBE: Duration = Duration::from_secs(20);

/// The processor that qemu emulates: one without AVX and ERMS, which others are, so that programs do
/// not use what emulation is slow at. Measured: it takes 0.8 times the time of `max`.
const EMULATED: &str = "Nehalem,+rdrand";

/// The kernel's parameters with an emulated processor. It leaks nothing to anybody and pays for not
/// doing so; and what qemu has translated is used again by a process that has it at the same
/// addresses. Measured: 0.9 and 0.75 times the time.
const FAST: &str = "mitigations=off norandmaps";

/// What runs the machine's instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Accel {
    /// The processor.
    Kvm,
    /// qemu.
    Tcg,
}

/// A machine to be run.
pub struct Machine<'a> {
    /// The kernel's image.
    pub image: &'a Path,
    /// The file system that it starts with.
    pub initramfs: &'a Path,
    /// How cgroups are mounted in it.
    pub cgroups: Cgroups,
    /// Its processors.
    pub cpus: usize,
    /// What runs it.
    pub accel: Accel,
    /// The directory for what it says: its console, and its records.
    pub logs: &'a Path,
}

/// A record and when it came, since the machine was started.
pub type Timed = (Duration, Record);

/// What a machine said before it ended.
pub struct Run {
    /// All records.
    pub records: Vec<Timed>,
    /// Why it ended before its tests did, if so.
    pub failure: Option<String>,
}

/// Ends a machine when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Machine<'_> {
    fn console(&self) -> PathBuf {
        self.logs.join("console.log")
    }

    fn command(&self) -> Command {
        let (accel, cpu, fast) = match self.accel {
            Accel::Kvm => ("kvm", "host", ""),
            Accel::Tcg => ("tcg,thread=multi", EMULATED, FAST),
        };
        let only = match self.cgroups {
            Cgroups::Pure => "cgroup_no_v1=all",
            Cgroups::Hybrid => "",
        };
        let append = format!(
            "console=ttyS0 quiet panic=-1 random.trust_cpu=on {fast} {only} {CGROUPS}={}",
            self.cgroups
        );
        let mut command = Command::new(PROGRAM);
        command
            .args(["-M", "q35", "-accel", accel, "-cpu", cpu])
            .args(["-m", &MEMORY.to_string(), "-smp", &self.cpus.to_string()])
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-nic", "none"])
            .arg("-serial")
            .arg(format!("file:{}", self.console().display()))
            .args(["-serial", "stdio"])
            .arg("-kernel")
            .arg(self.image)
            .arg("-initrd")
            .arg(self.initramfs)
            .args(["-append", &append])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs it until its tests have ended, it ends itself, or `limit` is over.
    ///
    /// # Errors
    /// When qemu cannot be started, or a line is no record.
    pub fn run(&self, limit: Duration) -> anyhow::Result<Run> {
        let started = Instant::now();
        let child = self.command().spawn();
        let mut child = Running(child.with_context(|| format!("cannot run {PROGRAM}"))?);
        let stdout = child.0.stdout.take().context("qemu has no output")?;
        let lines = lines(stdout);
        let mut records = Vec::new();
        let log = self.logs.join("records.jsonl");
        let unwritable = || format!("cannot write {}", log.display());
        let mut file = File::create(&log).with_context(unwritable)?;
        let failure = loop {
            let left = limit.saturating_sub(started.elapsed());
            match lines.recv_timeout(left) {
                Ok(line) => {
                    writeln!(file, "{}", line.trim()).with_context(unwritable)?;
                    let record: Record = serde_json::from_str(line.trim())
                        .with_context(|| format!("the machine said {line}"))?;
                    let finished = record == Record::Finished;
                    records.push((started.elapsed(), record));
                    if finished {
                        break None;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    break Some(format!("it was ended after {} s", limit.as_secs()));
                }
                Err(RecvTimeoutError::Disconnected) => break Some(self.last_words(&mut child.0)),
            }
        };
        Ok(Run { records, failure })
    }

    /// Why a machine has ended by itself: what qemu, or its kernel, said last.
    fn last_words(&self, child: &mut Child) -> String {
        let qemu = child
            .stderr
            .take()
            .and_then(|stderr| std::io::read_to_string(stderr).ok())
            .unwrap_or_default();
        let console = fs::read(self.console()).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let said = [qemu.trim(), console.trim()]
            .into_iter()
            .find(|text| !text.is_empty())
            .and_then(|text| text.lines().last())
            .unwrap_or("nothing");
        format!("it ended before its tests; the last that it said was: {said}")
    }
}

fn lines(stdout: ChildStdout) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            if !line.trim().is_empty() && sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// What machines run on here: the processor where a machine proves that it can, which is found out
/// once after each start of this machine. `initramfs` is one without tests.
///
/// # Errors
/// When what was found out cannot be kept.
pub fn accel(image: &Path, initramfs: &Path, dir: &Path) -> anyhow::Result<Accel> {
    if File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_err()
    {
        return Ok(Accel::Tcg);
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .context("cannot tell when this machine was started")?;
    let verdict = dir.join("kvm");
    let known = fs::read_to_string(&verdict).unwrap_or_default();
    let accel = match known.strip_prefix(boot.trim()).map(str::trim) {
        Some("works") => return Ok(Accel::Kvm),
        Some(_) => return Ok(Accel::Tcg),
        None => probe(image, initramfs, dir),
    };
    let word = match &accel {
        Ok(()) => "works",
        Err(error) => {
            println!("machines are emulated, for KVM does not work: {error:#}");
            "fails"
        }
    };
    fs::write(&verdict, format!("{} {word}", boot.trim()))
        .with_context(|| format!("cannot write {}", verdict.display()))?;
    Ok(if accel.is_ok() {
        Accel::Kvm
    } else {
        Accel::Tcg
    })
}

fn probe(image: &Path, initramfs: &Path, dir: &Path) -> anyhow::Result<()> {
    let machine = Machine {
        image,
        initramfs,
        cgroups: Cgroups::Pure,
        cpus: 1,
        accel: Accel::Kvm,
        logs: dir,
    };
    match machine.run(PROBE)?.failure {
        None => Ok(()),
        Some(failure) => bail!(failure),
    }
}

/// Where qemu is, and its version.
///
/// # Errors
/// When it is not there.
pub fn find() -> anyhow::Result<String> {
    crate::setup::version(PathBuf::from(PROGRAM).as_os_str())
}
