//! The end that connects.

use std::{
    io::Write as _,
    process::{Child, ChildStdin},
    sync::mpsc,
};

use anyhow::Context as _;

use super::{
    cpu_time,
    wire::{Done, Order},
};
use crate::{
    Place,
    apps::{app, spawn},
    poll::DEADLINE,
};

/// A process that makes connections as it is told. It ends when this is dropped.
#[derive(Debug)]
pub struct LoadClient {
    child: Child,
    stdin: ChildStdin,
    lines: mpsc::Receiver<String>,
}

impl LoadClient {
    /// Starts one on a CPU.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(place: Place<'_>, cpu: usize) -> anyhow::Result<Self> {
        let mut command = app(&place)?;
        command.args(["load", "--cpu", &cpu.to_string(), "connect"]);
        let (mut child, lines) = spawn(&mut command)?;
        let stdin = child.stdin.take().context("app has no stdin")?;
        Ok(Self {
            child,
            stdin,
            lines,
        })
    }

    /// Has it do something, and waits until it is done.
    ///
    /// # Errors
    /// When it fails or is stuck; it says why on standard error.
    pub fn run(&mut self, order: Order) -> anyhow::Result<Done> {
        writeln!(self.stdin, "{}", serde_json::to_string(&order)?)
            .with_context(|| format!("the load client has ended before {order:?}"))?;
        let line = self.lines.recv_timeout(DEADLINE);
        let line =
            line.with_context(|| format!("the load client has ended or is stuck: {order:?}"))?;
        serde_json::from_str(&line).with_context(|| format!("not what was done: {line}"))
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its CPU time so far, in ns.
    ///
    /// # Errors
    /// When it has ended.
    pub fn cpu_time(&self) -> anyhow::Result<u64> {
        cpu_time(self.child.id())
    }
}

impl Drop for LoadClient {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
