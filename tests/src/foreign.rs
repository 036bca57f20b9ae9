//! BPF programs of somebody else.

use std::{
    ffi::OsStr,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::SocketAddrV4,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, bail};

use crate::command;

/// Attaches and waits; see there.
const SCRIPT: &str = include_str!("foreign.py");

/// A hook of a cgroup: for packets, or one that is told a socket's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// `BPF_CGROUP_INET_INGRESS`.
    Ingress = 0,
    /// `BPF_CGROUP_INET_EGRESS`.
    Egress = 1,
    /// `BPF_CGROUP_INET4_CONNECT`.
    Connect4 = 10,
    /// `BPF_CGROUP_UDP6_RECVMSG`.
    Recvmsg6 = 20,
}

/// How a program is attached to a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flags {
    /// So that nobody else may attach.
    Exclusive = 0,
    /// `BPF_F_ALLOW_OVERRIDE`.
    Override = 1,
    /// `BPF_F_ALLOW_MULTI`.
    Multi = 2,
    /// `BPF_F_ALLOW_MULTI` and `BPF_F_PREORDER` (6.15): before those of cgroups below.
    Preorder = 66,
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

/// Has a pinned link for `connect4` run a program that lets everything pass, with the maps of the
/// one that it runs.
///
/// # Errors
/// As [`detach_link`].
pub fn update_link(pin: &Path) -> anyhow::Result<()> {
    command::output(
        Command::new("python3")
            .args(["-c", SCRIPT, "update"])
            .arg(pin),
    )?;
    Ok(())
}

/// Overwrites the storage of a cgroup in a pinned map with zeros.
///
/// # Errors
/// As [`detach_link`].
pub fn wipe_storage(pin: &Path, cgroup: u64) -> anyhow::Result<()> {
    command::output(
        Command::new("python3")
            .args(["-c", SCRIPT, "wipe"])
            .arg(pin)
            .arg(cgroup.to_string()),
    )?;
    Ok(())
}

/// A program, named `foreign` unless it is said, that lets everything pass. Detached when dropped.
#[derive(Debug)]
pub struct Foreign {
    child: Child,
    stdout: BufReader<ChildStdout>,
    link: Option<u32>,
}

impl Foreign {
    /// At a hook of a cgroup.
    ///
    /// # Errors
    /// When it cannot be attached, mostly for want of root or of python3.
    pub fn on_cgroup(cgroup: &Path, hook: Hook, flags: Flags) -> anyhow::Result<Self> {
        let [hook, flags] = [hook as u32, flags as u32].map(|number| number.to_string());
        let words = ["cgroup".as_ref(), cgroup.as_os_str()];
        Self::start(&words, &[&hook, &flags])
    }

    /// As systemd's IP accounting: counts the bytes of packets at [`Hook::Ingress`] or
    /// [`Hook::Egress`].
    ///
    /// # Errors
    /// As [`on_cgroup`](Self::on_cgroup).
    pub fn accounting(cgroup: &Path, hook: Hook) -> anyhow::Result<Self> {
        let [hook, flags] = [hook as u32, Flags::Multi as u32].map(|number| number.to_string());
        let words = ["bytes".as_ref(), cgroup.as_os_str()];
        Self::start(&words, &[&hook, &flags])
    }

    /// As a load balancer for sockets: leads connections to `service` to `backend`, and counts
    /// them.
    ///
    /// # Errors
    /// As [`on_cgroup`](Self::on_cgroup).
    pub fn balancer(
        cgroup: &Path,
        flags: Flags,
        service: SocketAddrV4,
        backend: SocketAddrV4,
    ) -> anyhow::Result<Self> {
        let flags = (flags as u32).to_string();
        let [service, backend] = [service, backend].map(|address| address.to_string());
        let words = ["balancer".as_ref(), cgroup.as_os_str()];
        Self::start(&words, &[&flags, &service, &backend])
    }

    /// What it has counted: calls, unless it says otherwise.
    ///
    /// # Errors
    /// When it has ended.
    pub fn counted(&mut self) -> anyhow::Result<u64> {
        let stdin = self.child.stdin.as_mut().context("no stdin")?;
        writeln!(stdin, "count")?;
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        let count = line.trim().parse();
        count.with_context(|| format!("the foreign program counted {line:?}"))
    }

    /// At the hook `sk_lookup` of a network namespace.
    ///
    /// # Errors
    /// As [`on_cgroup`](Self::on_cgroup).
    pub fn on_netns(netns: &Path) -> anyhow::Result<Self> {
        Self::start::<&str>(&["netns".as_ref(), netns.as_os_str()], &[])
    }

    /// At a hook of a cgroup, by a link, and with a name of its own. As long as the link is pinned
    /// it stays attached.
    ///
    /// # Errors
    /// As [`on_cgroup`](Self::on_cgroup).
    pub fn link(cgroup: &Path, hook: Hook, name: &str, pin: Option<&Path>) -> anyhow::Result<Self> {
        let words = ["link".as_ref(), cgroup.as_os_str()];
        let hook = (hook as u32).to_string();
        let more: Vec<&OsStr> = [hook.as_ref(), name.as_ref()]
            .into_iter()
            .chain(pin.map(Path::as_os_str))
            .collect();
        Self::start(&words, &more)
    }

    /// The kernel's number for its link, if it is attached by one.
    #[must_use]
    pub fn link_id(&self) -> Option<u32> {
        self.link
    }

    fn start<S: AsRef<OsStr>>(words: &[&OsStr], more: &[S]) -> anyhow::Result<Self> {
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
        let mut foreign = Self {
            child,
            stdout: BufReader::new(stdout),
            link: None,
        };
        let mut line = String::new();
        foreign.stdout.read_line(&mut line)?;
        if let Some(link) = line.trim().strip_prefix("ready") {
            foreign.link = link.trim().parse().ok();
        } else {
            let mut error = String::new();
            let stderr = foreign.child.stderr.take();
            stderr.map(|mut stderr| stderr.read_to_string(&mut error));
            bail!("the foreign program was not attached: {}", error.trim());
        }
        Ok(foreign)
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        // It detaches at the end of its input.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
