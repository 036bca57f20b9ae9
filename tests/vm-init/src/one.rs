//! Process 1.

use std::{
    convert::Infallible,
    env,
    process::{self, Command},
};

use anyhow::Context as _;
use rustix::{
    process::{Pid, Resource, Rlimit, WaitOptions, setrlimit, wait},
    system::{RebootCommand, reboot},
};

use sidecar_vm_init::PATH;

use crate::{modules, mounts, suites};

/// Files that one process may have open: more than the kernel's own default, as systemd has it.
const FILES: u64 = 524_288;

/// Runs the machine until the tests have ended, then restarts it.
pub fn run() -> ! {
    if let Err(error) = boot() {
        eprintln!("init: {error:#}");
    }
    rustix::fs::sync();
    let Err(error) = restart();
    eprintln!("init: cannot restart the machine: {error}");
    // The kernel panics, which ends the machine too.
    process::exit(1)
}

fn restart() -> Result<Infallible, rustix::io::Errno> {
    reboot(RebootCommand::Restart)?;
    // It does not return.
    Err(rustix::io::Errno::INTR)
}

fn boot() -> anyhow::Result<()> {
    let cgroups = mounts::cgroups_asked_for()?;
    mounts::mount_all(cgroups)?;
    let mut port = suites::Port::open()?;
    let limit = Rlimit {
        current: Some(FILES),
        maximum: Some(FILES),
    };
    setrlimit(Resource::Nofile, limit).context("cannot raise the limit of open files")?;
    for trouble in modules::load()? {
        port.trouble(trouble)?;
    }
    for words in [
        ["ip", "link", "set", "lo", "up"].as_slice(),
        &["hostname", "vm"],
    ] {
        if let Err(error) = succeed(words) {
            port.trouble(format!("{error:#}"))?;
        }
    }
    let release = rustix::system::uname().release().to_string_lossy().into();
    port.booted(release, cgroups)?;

    let worker = Command::new(env::current_exe().context("cannot find this program")?)
        .spawn()
        .context("cannot start the tests")?;
    reap_until(worker.id());
    Ok(())
}

fn succeed(words: &[&str]) -> anyhow::Result<()> {
    // `sh` finds it in PATH; the kernel gives process 1 none.
    let status = Command::new("sh")
        .args(["-c", "exec \"$0\" \"$@\""])
        .args(words)
        .env("PATH", PATH)
        .status()
        .with_context(|| format!("cannot run `{}`", words.join(" ")))?;
    anyhow::ensure!(status.success(), "`{}`: {status}", words.join(" "));
    Ok(())
}

/// Waits for all children, also those of processes that have ended, until `worker` has.
fn reap_until(worker: u32) {
    let worker = i32::try_from(worker).ok().and_then(Pid::from_raw);
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, _))) if Some(pid) == worker => return,
            Err(rustix::io::Errno::CHILD) => return,
            _ => {}
        }
    }
}
