//! A server at many addresses, by TCP and UDP.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    io::Write as _,
    net::SocketAddr,
    process::{Child, ChildStdin},
    sync::mpsc,
};

use anyhow::Context as _;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::server::{app, spawn};
use crate::{Place, poll::DEADLINE};

/// What an [`Answerer`] listens on. An IPv6 wildcard leaves IPv4 to others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named after what they are")]
pub enum Listen {
    Tcp(SocketAddr),
    Udp(SocketAddr),
}

/// A process that answers each connection and each datagram with a
/// [`Report`](super::visit::Report). It ends when this is dropped.
#[derive(Debug)]
pub struct Answerer {
    child: Child,
    stdin: RefCell<ChildStdin>,
    lines: mpsc::Receiver<String>,
    listening: RefCell<BTreeSet<Listen>>,
}

/// How an [`Answerer`] is to be started.
#[derive(Debug)]
pub struct AnswererBuilder<'a> {
    place: Place<'a>,
    name: &'a str,
    user: Option<(u32, u32)>,
    transparent: bool,
}

impl Answerer {
    /// An answerer that calls itself so.
    #[must_use]
    pub fn named(name: &str) -> AnswererBuilder<'_> {
        AnswererBuilder {
            place: Place::here(),
            name,
            user: None,
            transparent: false,
        }
    }

    /// Listens there, too, from when this returns; nothing if it does already.
    ///
    /// # Errors
    /// When it cannot.
    pub fn listen(&self, listen: Listen) -> anyhow::Result<()> {
        if self.listening.borrow().contains(&listen) {
            return Ok(());
        }
        writeln!(
            self.stdin.borrow_mut(),
            "{}",
            serde_json::to_string(&listen)?
        )
        .context("the answerer has ended")?;
        let line = self
            .lines
            .recv_timeout(DEADLINE)
            .context("the answerer has ended, or is stuck")?;
        let done: Result<(), i32> = serde_json::from_str(&line)?;
        done.map_err(Errno::from_raw_os_error)
            .with_context(|| format!("cannot listen: {listen:?}"))?;
        self.listening.borrow_mut().insert(listen);
        Ok(())
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Answerer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl<'a> AnswererBuilder<'a> {
    /// Where it runs.
    #[must_use]
    pub fn place(mut self, place: Place<'a>) -> Self {
        self.place = place;
        self
    }

    /// As whom it runs, without supplementary groups and without capabilities.
    #[must_use]
    pub fn user(mut self, uid: u32, gid: u32) -> Self {
        self.user = Some((uid, gid));
        self
    }

    /// Its TCP sockets have `IP_TRANSPARENT`, for which its user keeps `CAP_NET_ADMIN`.
    #[must_use]
    pub fn transparent(mut self, transparent: bool) -> Self {
        self.transparent = transparent;
        self
    }

    /// Starts it; it listens nowhere yet.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(self) -> anyhow::Result<Answerer> {
        let mut command = app(&self.place)?;
        command.args(["answer", "--name", self.name]);
        if let Some((uid, gid)) = self.user {
            command.arg(format!("--as={uid}:{gid}"));
        }
        if self.transparent {
            command.arg("--transparent");
        }
        let (mut child, lines) = spawn(&mut command)?;
        let stdin = child.stdin.take().context("app has no stdin")?;
        Ok(Answerer {
            child,
            stdin: RefCell::new(stdin),
            lines,
            listening: RefCell::default(),
        })
    }
}
