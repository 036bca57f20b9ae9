//! What the kernel is told of a workload: its addresses, interfaces, routes and ports.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::{Context, Result};
use aya::maps::lpm_trie::Key;
use ipnet::IpNet;
use sidecar_common::{
    Addr, Endpoint,
    keys::{RouteKey, WorkloadEndpoint, WorkloadId, WorkloadInterface},
    values::{Route, refused_workload, refusing_plan},
};

use super::{Maps, sockets::workload_port};
use crate::dataplane::{contents::bits, network::RouteTo};

/// What the kernel was told of a workload.
#[derive(Clone, Default)]
pub struct ToldWorkload {
    /// Its own addresses.
    pub local_addrs: BTreeSet<Addr>,
    /// Interfaces that are unlike others, by some plan.
    pub interfaces: BTreeMap<WorkloadInterface, u32>,
    /// Routes, where it makes a difference which is taken.
    pub routes: Vec<RouteTo>,
    /// Ports whose listening sockets have to be known.
    pub listen_ports: BTreeSet<u16>,
}

impl Maps {
    /// Makes the addresses `now` the workload's own, which were those in `before`. On failure none
    /// of the others stays.
    pub fn set_local_addrs(
        &mut self,
        workload: WorkloadId,
        before: &BTreeSet<Addr>,
        now: &BTreeSet<Addr>,
    ) -> Result<()> {
        let added = now.difference(before).try_for_each(|&addr| {
            let key = local_addr_key(workload, addr);
            self.failures
                .note("LOCAL_ADDRS", self.local_addrs.insert(key, 1, 0))
                .context("raise --max-workloads")
        });
        let gone = match added {
            Ok(()) => before.difference(now),
            Err(_) => now.difference(before),
        };
        for addr in gone {
            let _ = self.local_addrs.remove(&local_addr_key(workload, *addr));
        }
        added
    }

    /// Makes `now` what is known of a workload's interfaces, which was `before`. On failure none of
    /// the others stays.
    pub fn set_interfaces(
        &mut self,
        before: &BTreeMap<WorkloadInterface, u32>,
        now: &BTreeMap<WorkloadInterface, u32>,
    ) -> Result<()> {
        let added = now.iter().try_for_each(|(key, flags)| {
            let written = self.interfaces.insert(key, flags, 0);
            self.failures
                .note("INTERFACES", written)
                .context("raise --max-workloads")
        });
        let (there, kept) = if added.is_ok() {
            (before, now)
        } else {
            (now, before)
        };
        for key in there.keys().filter(|key| !kept.contains_key(key)) {
            let _ = self.interfaces.remove(key);
        }
        added
    }

    /// Makes `now` the workload's routes, which were `before`. On failure none of the others stays.
    pub fn set_routes(
        &mut self,
        workload: WorkloadId,
        before: &[RouteTo],
        now: &[RouteTo],
    ) -> Result<()> {
        let key = |route: &RouteTo| {
            let addr = route.net.network().into();
            Key::new(
                RouteKey::HEAD_BITS + bits(&route.net),
                RouteKey { workload, addr },
            )
        };
        let added = now.iter().try_for_each(|route| {
            let value = Route {
                interface: route.interface,
                source: route.source.map_or(Addr::ANY, Addr::from),
            };
            let written = self.routes.insert(&key(route), value, 0);
            self.failures
                .note("ROUTES", written)
                .context("raise --max-workloads")
        });
        let (there, kept) = if added.is_ok() {
            (before, now)
        } else {
            (now, before)
        };
        let is_gone = |route: &&RouteTo| !kept.iter().any(|other| other.net == route.net);
        for route in there.iter().filter(is_gone) {
            let _ = self.routes.remove(&key(route));
        }
        added
    }

    /// What the kernel was told of each workload by an earlier agent.
    pub fn told_workloads(&self) -> BTreeMap<WorkloadId, ToldWorkload> {
        let mut found: BTreeMap<_, ToldWorkload> = BTreeMap::new();
        for key in self.local_addrs.keys().flatten() {
            let told = found.entry(key.workload).or_default();
            told.local_addrs.insert(key.endpoint.addr);
        }
        for (key, flags) in self.interfaces.iter().flatten() {
            let told = found.entry(key.workload).or_default();
            told.interfaces.insert(key, flags);
        }
        for (key, route) in self.routes.iter().flatten() {
            let told = found.entry(key.data().workload).or_default();
            told.routes.push(route_to(&key, &route));
        }
        for key in self.listen_interest.keys().flatten() {
            let told = found.entry(key.workload).or_default();
            told.listen_ports.insert(key.port);
        }
        let refused = self.plans.keys().flatten().filter_map(refused_workload);
        let with_sockets = self.sockets.keys().flatten().map(|key| key.workload);
        for workload in refused.chain(with_sockets) {
            found.entry(workload).or_default();
        }
        found
    }

    /// Removes what the kernel was told of a workload that was detached. What programs have entered
    /// for it is left: see [`forget_entered`](Self::forget_entered).
    pub fn forget_told(&mut self, workload: WorkloadId, told: &ToldWorkload) {
        // Removing cannot fail for want of room.
        let _ = self.set_local_addrs(workload, &told.local_addrs, &BTreeSet::new());
        let _ = self.set_interfaces(&told.interfaces, &BTreeMap::new());
        let _ = self.set_routes(workload, &told.routes, &[]);
        for &port in &told.listen_ports {
            let _ = self.listen_interest.remove(&workload_port(workload, port));
        }
        let _ = self.plans.remove(&refusing_plan(workload));
    }
}

/// A route as it was before it was told to the kernel.
pub fn route_to(key: &Key<RouteKey>, route: &Route) -> RouteTo {
    let addr = IpAddr::from(key.data().addr);
    let bits = key.prefix_len().saturating_sub(RouteKey::HEAD_BITS);
    let bits = match addr {
        IpAddr::V4(_) => bits.saturating_sub(Addr::V4_PREFIX),
        IpAddr::V6(_) => bits,
    };
    let bits = u8::try_from(bits).unwrap_or(u8::MAX);
    RouteTo {
        net: IpNet::new(addr, bits).unwrap_or(IpNet::from(addr)),
        interface: route.interface,
        source: (!route.source.is_wildcard()).then(|| route.source.into()),
    }
}

fn local_addr_key(workload: WorkloadId, addr: Addr) -> WorkloadEndpoint {
    WorkloadEndpoint {
        workload,
        endpoint: Endpoint::new(addr, 0),
    }
}
