//! BPF programs of somebody else.

use std::{
    ffi::OsStr,
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, bail};

use crate::command;

/// Attaches and waits; see there.
const SCRIPT: &str = include_str!("foreign.py");

/// `BPF_CGROUP_INET4_CONNECT`.
const CONNECT4: &str = "10";

/// How a program is attached to a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flags {
    /// So that nobody else may attach.
    Exclusive = 0,
    /// `BPF_F_ALLOW_OVERRIDE`.
    Override = 1,
    /// `BPF_F_ALLOW_MULTI`.
    Multi = 2,
}

/// Has a pinned link be attached to nothing, as `bpftool link detach` has; its pin stays.
///
/// # Errors
/// When there is no such link, or for want of root or of python3.
pub fn detach_link(pin: &Path) -> anyhow::Result<()> {
    command::output(
        Command::new("python3")
            .args(["-c", SCRIPT, "detach"])
            .arg(pin),
    )?;
    Ok(())
}

/// A program named `foreign` that lets everything pass. Detached when dropped.
#[derive(Debug)]
pub struct Foreign(Child);

impl Foreign {
    /// At the hook `connect4` of a cgroup.
    ///
    /// # Errors
    /// When it cannot be attached, mostly for want of root or of python3.
    pub fn on_cgroup(cgroup: &Path, flags: Flags) -> anyhow::Result<Self> {
        let flags = (flags as u32).to_string();
        let words = ["cgroup".as_ref(), cgroup.as_os_str()];
        Self::start(&words, &[CONNECT4, &flags])
    }

    /// At the hook `sk_lookup` of a network namespace.
    ///
    /// # Errors
    /// As [`on_cgroup`](Self::on_cgroup).
    pub fn on_netns(netns: &Path) -> anyhow::Result<Self> {
        Self::start(&["netns".as_ref(), netns.as_os_str()], &[])
    }

    fn start(words: &[&OsStr], more: &[&str]) -> anyhow::Result<Self> {
        let mut child = Command::new("python3")
            .args(["-c", SCRIPT])
            .args(words)
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run python3")?;
        let stdout = child.stdout.take().context("no stdout")?;
        // Ended when dropped, from here on.
        let mut foreign = Self(child);
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        if line.trim() != "ready" {
            let mut error = String::new();
            let stderr = foreign.0.stderr.take();
            stderr.map(|mut stderr| stderr.read_to_string(&mut error));
            bail!("the foreign program was not attached: {}", error.trim());
        }
        Ok(foreign)
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        // It detaches at the end of its input.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
