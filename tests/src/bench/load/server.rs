//! The end that listens.

use std::{net::SocketAddr, path::Path, process::Child};

use anyhow::Context as _;

use super::cpu_time;
use crate::{
    Place,
    apps::{app, spawn},
    poll::DEADLINE,
};

/// A server, killed when dropped.
#[derive(Debug)]
pub struct LoadServer(Child);

impl LoadServer {
    /// One that takes connections one after the other, asks for `SO_ORIGINAL_DST`, and either sends
    /// back a byte and waits for the client to close, or closes at once.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn of_connections(
        place: Place<'_>,
        cpu: usize,
        address: SocketAddr,
        exchange: bool,
    ) -> anyhow::Result<Self> {
        let verb = if exchange { "exchange" } else { "close" };
        Self::start(place, cpu, &["--tcp", &address.to_string(), verb])
    }

    /// One that serves many connections at once: for each `receive` bytes it sends `send`.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn of_bytes(
        place: Place<'_>,
        cpu: usize,
        listen: At<'_>,
        receive: u32,
        send: u32,
    ) -> anyhow::Result<Self> {
        let (option, at) = match listen {
            At::Tcp(address) => ("--tcp", address.to_string()),
            At::Unix(path) => ("--unix", path.display().to_string()),
        };
        let (receive, send) = (receive.to_string(), send.to_string());
        Self::start(place, cpu, &[option, &at, "answer", &receive, &send])
    }

    fn start(place: Place<'_>, cpu: usize, args: &[&str]) -> anyhow::Result<Self> {
        let mut command = app(&place)?;
        command.args(["load", "--cpu", &cpu.to_string(), "listen"]);
        let (child, lines) = spawn(command.args(args))?;
        let server = Self(child);
        let line = lines.recv_timeout(DEADLINE);
        let line = line.with_context(|| format!("the load server {args:?} does not listen"))?;
        anyhow::ensure!(line == "READY", "the load server {args:?} says {line}");
        Ok(server)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Its CPU time so far, in ns.
    ///
    /// # Errors
    /// When it has ended.
    pub fn cpu_time(&self) -> anyhow::Result<u64> {
        cpu_time(self.0.id())
    }
}

/// Where a server listens.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "named after what they are")]
pub enum At<'a> {
    Tcp(SocketAddr),
    Unix(&'a Path),
}

impl Drop for LoadServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
