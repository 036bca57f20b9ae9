//! Listening sockets: which ports are of interest, and which sockets are known.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

use anyhow::{Context, Result};
use sidecar_common::{
    Addr, Endpoint,
    keys::{WorkloadEndpoint, WorkloadId, WorkloadPort},
};

use super::Maps;

impl Maps {
    /// Adds ports whose listeners must be known, before a plan that needs them. On failure none of
    /// them stays.
    pub fn set_listen_interest(
        &mut self,
        workload: WorkloadId,
        old: &BTreeSet<u16>,
        new: &BTreeSet<u16>,
    ) -> Result<()> {
        let added = new.difference(old).try_for_each(|&port| {
            let key = workload_port(workload, port);
            self.failures
                .note("LISTEN_INTEREST", self.listen_interest.insert(key, 0, 0))
                .context("raise --max-sockets")
        });
        if added.is_err() {
            self.drop_listen_interest(workload, new, old);
        }
        added
    }

    /// Takes away ports that the plan in force does not need.
    pub fn drop_listen_interest(
        &mut self,
        workload: WorkloadId,
        old: &BTreeSet<u16>,
        new: &BTreeSet<u16>,
    ) {
        let gone: BTreeSet<u16> = old.difference(new).copied().collect();
        if gone.is_empty() {
            return;
        }
        for &port in &gone {
            let _ = self.listen_interest.remove(&workload_port(workload, port));
        }
        self.remove_sockets(|key| key.workload == workload && gone.contains(&key.endpoint.port));
    }

    /// How many sockets of the workload began to listen on a port since that is of interest; `None`:
    /// it is not.
    pub fn listened(&self, workload: WorkloadId, port: u16) -> Option<u64> {
        let key = workload_port(workload, port);
        self.listen_interest.get(&key, 0).ok()
    }

    /// The endpoints whose listening sockets are known, of every workload.
    pub fn sockets(&self) -> BTreeMap<WorkloadId, BTreeSet<Endpoint>> {
        let mut found: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for key in self.sockets.keys().flatten() {
            found.entry(key.workload).or_default().insert(key.endpoint);
        }
        found
    }

    /// Enters a listening socket under the endpoint it is bound to.
    pub fn enter_socket(
        &mut self,
        workload: WorkloadId,
        endpoint: Endpoint,
        socket: &OwnedFd,
    ) -> Result<()> {
        let key = WorkloadEndpoint { workload, endpoint };
        let written = self.sockets.insert(key, socket.as_raw_fd(), 0);
        self.failures
            .note("SOCKETS", written)
            .with_context(|| format!("entering the socket on {endpoint}; raise --max-sockets"))
    }

    /// Enters the relay's listener for one address family (given by its wildcard address).
    pub fn enter_relay(
        &mut self,
        workload: WorkloadId,
        family: Addr,
        socket: BorrowedFd<'_>,
    ) -> Result<()> {
        let endpoint = Endpoint::new(family, 0);
        let key = WorkloadEndpoint { workload, endpoint };
        let written = self.sockets.insert(key, socket.as_raw_fd(), 0);
        self.failures
            .note("SOCKETS", written)
            .context("entering the relay's listener; raise --max-sockets")
    }

    /// Removes what programs (and the relay) have entered for workloads that were detached: the next
    /// workloads in their slots must not inherit it. It walks all of `SOCKETS`, `ORIGINAL_DST` and
    /// `DESTINATIONS`, so it is for many workloads at a time.
    pub fn forget_entered(&mut self, is_gone: impl Fn(WorkloadId) -> bool) {
        self.remove_sockets(|key| is_gone(key.workload));
        let originals = self.original_dst.keys().flatten();
        let keys: Vec<_> = originals.filter(|key| is_gone(key.workload)).collect();
        for key in keys {
            let _ = self.original_dst.remove(&key);
        }
        let destinations = self.destinations.keys().flatten();
        let keys: Vec<_> = destinations.filter(|key| is_gone(key.workload)).collect();
        for key in keys {
            let _ = self.destinations.remove(&key);
        }
    }

    fn remove_sockets(&mut self, which: impl Fn(&WorkloadEndpoint) -> bool) {
        let keys: Vec<_> = self.sockets.keys().flatten().filter(which).collect();
        for key in keys {
            let _ = self.sockets.remove(&key);
        }
    }
}

/// The key of a port of interest.
pub fn workload_port(workload: WorkloadId, port: u16) -> WorkloadPort {
    WorkloadPort {
        workload,
        port,
        pad: 0,
    }
}
