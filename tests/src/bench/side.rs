//! One side of a comparison: who connects, to where, and whose CPU time counts.

use std::net::SocketAddr;

use super::{
    load::{LoadClient, LoadServer, cpu_time, wire::Order},
    slices::Sample,
};

/// A side. What serves it may be shared with others, and is kept elsewhere then.
#[derive(Debug)]
pub struct Side {
    client: LoadClient,
    /// Where it connects to.
    pub address: SocketAddr,
    server: Option<LoadServer>,
    counted: Vec<u32>,
    /// Both ends, where it counts how busy they are.
    ends: Vec<u32>,
}

impl Side {
    /// A client that connects to a server of its own; the CPU time of both counts.
    #[must_use]
    pub fn with_server(client: LoadClient, address: SocketAddr, server: LoadServer) -> Self {
        let counted = vec![client.pid(), server.pid()];
        Self {
            client,
            address,
            server: Some(server),
            counted,
            ends: Vec::new(),
        }
    }

    /// A client that connects to a server of all sides; the CPU time of these processes counts.
    #[must_use]
    pub fn counting(client: LoadClient, address: SocketAddr, counted: Vec<u32>) -> Self {
        Self {
            client,
            address,
            server: None,
            counted,
            ends: Vec::new(),
        }
    }

    /// Counts how busy its client and its server are, who share a CPU.
    pub fn count_ends(&mut self, server: u32) {
        self.ends = vec![self.client.pid(), server];
    }

    /// Keeps a server for as long as the side.
    #[must_use]
    pub fn keeping(mut self, server: LoadServer) -> Self {
        self.server = Some(server);
        self
    }

    /// The server that it kept, if any.
    #[must_use]
    pub fn into_server(self) -> Option<LoadServer> {
        self.server
    }

    /// Makes connections that stay.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn open(&mut self, connections: u32) -> anyhow::Result<()> {
        let address = self.address;
        self.client.run(Order::Open {
            address,
            connections,
        })?;
        Ok(())
    }

    /// Does something once.
    ///
    /// # Errors
    /// When it fails.
    pub fn sample(&mut self, order: Order) -> anyhow::Result<Sample> {
        let before = [sum(&self.counted)?, sum(&self.ends)?];
        let done = self.client.run(order)?;
        let cpu = sum(&self.counted)?.saturating_sub(before[0]);
        let ends = sum(&self.ends)?.saturating_sub(before[1]);
        #[expect(clippy::cast_precision_loss, reason = "figures")]
        let [operations, nanos, cpu, ends] =
            [done.operations, done.nanos, cpu, ends].map(|of| of as f64);
        Ok(Sample {
            rate: operations * 1e9 / nanos,
            cpu: cpu / operations,
            ends: ends / nanos,
        })
    }

    /// Makes connections one after the other.
    ///
    /// # Errors
    /// When one fails.
    pub fn connect(&mut self, times: u32, exchange: bool) -> anyhow::Result<Sample> {
        self.sample(Order::Connect {
            address: self.address,
            times,
            exchange,
        })
    }
}

/// The CPU time of these processes so far, in ns.
fn sum(pids: &[u32]) -> anyhow::Result<u64> {
    pids.iter().map(|pid| cpu_time(*pid)).sum()
}
