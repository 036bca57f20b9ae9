//! Typed handles to the maps, and a plan's way into them and out again.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::{Mutex, PoisonError, atomic::Ordering},
};

use anyhow::{Context, Result, bail};
use aya::maps::{HashMap, LpmTrie, Map, MapData, SockHash, lpm_trie::Key};
use ipnet::IpNet;
use sidecar_common::{
    Addr, Endpoint, Path, Reason,
    keys::{
        BackendKey, OwnerKey, PlanId, PrefixKey, RouteKey, RuleKey, Tuple, WorkloadEndpoint,
        WorkloadId, WorkloadInterface, WorkloadPort,
    },
    values::{DECISION_SLOTS, Identity, Original, PlanHeader, Route, Rule},
};

use super::{network::RouteTo, object::Objects, sys, usage::Failures};
use crate::compile::Plan;

/// Capacities, in entries. Memory is taken only for entries in use, except `original_dst` and the
/// counters (4 KiB for each of `workloads`).
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Workloads on this node.
    pub workloads: u32,
    /// Plans, current and just retired.
    pub plans: u32,
    /// Exact rules, prefix rules and backends, each, of all plans together.
    pub rules: u32,
    /// Listening sockets that captured connections are handed to.
    pub sockets: u32,
    /// Redirected connections whose original destination is remembered.
    pub original_dst: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            workloads: 1024,
            plans: 4096,
            rules: 262_144,
            sockets: 16_384,
            original_dst: 65_536,
        }
    }
}

impl Capacity {
    /// Words of counters.
    pub(super) fn counters(&self) -> u32 {
        self.workloads.saturating_mul(DECISION_SLOTS)
    }

    /// Every map whose size is configured, by name.
    #[must_use]
    pub fn entries(&self) -> [(&'static str, u32); 14] {
        [
            ("WORKLOADS", self.workloads),
            ("PLANS", self.plans),
            ("OUTBOUND", self.rules),
            ("PREFIXES", self.rules),
            ("INBOUND", self.rules),
            ("BACKENDS", self.rules),
            ("OWNERS", self.rules),
            ("INTERFACES", self.workloads.saturating_mul(16)),
            ("ROUTES", self.workloads.saturating_mul(16)),
            ("LOCAL_ADDRS", self.workloads.saturating_mul(16)),
            ("LISTEN_INTEREST", self.sockets),
            ("SOCKETS", self.sockets),
            ("ORIGINAL_DST", self.original_dst),
            ("COUNTERS", self.counters()),
        ]
    }
}

/// Entries that a plan, or all installed plans, take in each table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Size {
    plans: usize,
    outbound: usize,
    prefixes: usize,
    inbound: usize,
    backends: usize,
    owners: usize,
}

impl Size {
    fn of(plan: &Plan) -> Self {
        let size = plan.size();
        Self {
            plans: 1,
            outbound: size.outbound,
            prefixes: size.outbound_prefixes,
            inbound: size.inbound,
            backends: size.backends,
            owners: size.owners,
        }
    }

    fn tables(&self, capacity: &Capacity) -> [(&'static str, usize, u32); 6] {
        [
            ("PLANS", self.plans, capacity.plans),
            ("OUTBOUND", self.outbound, capacity.rules),
            ("PREFIXES", self.prefixes, capacity.rules),
            ("INBOUND", self.inbound, capacity.rules),
            ("BACKENDS", self.backends, capacity.rules),
            ("OWNERS", self.owners, capacity.rules),
        ]
    }

    fn combine(self, other: Self, with: impl Fn(usize, usize) -> usize) -> Self {
        Self {
            plans: with(self.plans, other.plans),
            outbound: with(self.outbound, other.outbound),
            prefixes: with(self.prefixes, other.prefixes),
            inbound: with(self.inbound, other.inbound),
            backends: with(self.backends, other.backends),
            owners: with(self.owners, other.owners),
        }
    }
}

/// All maps.
pub struct Maps {
    capacity: Capacity,
    used: Size,
    slots: sys::MappedWords,
    identities: MapData,
    plans: HashMap<MapData, PlanId, PlanHeader>,
    outbound: HashMap<MapData, RuleKey, Rule>,
    prefixes: LpmTrie<MapData, PrefixKey, Rule>,
    inbound: HashMap<MapData, RuleKey, Rule>,
    backends: HashMap<MapData, BackendKey, Endpoint>,
    owners: HashMap<MapData, OwnerKey, u8>,
    interfaces: HashMap<MapData, WorkloadInterface, u32>,
    routes: LpmTrie<MapData, RouteKey, Route>,
    local_addrs: HashMap<MapData, WorkloadEndpoint, u8>,
    listen_interest: HashMap<MapData, WorkloadPort, u8>,
    sockets: SockHash<MapData, WorkloadEndpoint>,
    original_dst: HashMap<MapData, Tuple, Original>,
    failures: Failures,
}

impl Maps {
    /// Opens every map by its pin.
    pub fn open(objects: &Objects, capacity: Capacity) -> Result<Self> {
        let hash = |name| objects.open_map(name).map(Map::HashMap);
        let workloads = objects.open_map("WORKLOADS")?;
        Ok(Self {
            capacity,
            used: Size::default(),
            slots: sys::MappedWords::map(workloads.fd().as_fd(), capacity.workloads)
                .context("mapping the WORKLOADS array")?,
            identities: objects.open_map("IDENTITIES")?,
            plans: hash("PLANS")?.try_into()?,
            outbound: hash("OUTBOUND")?.try_into()?,
            prefixes: Map::LpmTrie(objects.open_map("PREFIXES")?).try_into()?,
            inbound: hash("INBOUND")?.try_into()?,
            backends: hash("BACKENDS")?.try_into()?,
            owners: hash("OWNERS")?.try_into()?,
            interfaces: hash("INTERFACES")?.try_into()?,
            routes: Map::LpmTrie(objects.open_map("ROUTES")?).try_into()?,
            local_addrs: hash("LOCAL_ADDRS")?.try_into()?,
            listen_interest: hash("LISTEN_INTEREST")?.try_into()?,
            sockets: Map::SockHash(objects.open_map("SOCKETS")?).try_into()?,
            original_dst: Map::LruHashMap(objects.open_map("ORIGINAL_DST")?).try_into()?,
            failures: Failures::default(),
        })
    }

    /// The configured capacities.
    pub fn capacity(&self) -> &Capacity {
        &self.capacity
    }

    /// Updates that the kernel refused, by map.
    pub fn failures(&self) -> &Failures {
        &self.failures
    }

    /// Name, entries and capacity of the tables that plans fill.
    pub fn usage(&self) -> Vec<(&'static str, usize, u32)> {
        self.used.tables(&self.capacity).to_vec()
    }

    /// Makes `plan` the workload's: one store.
    pub fn switch(&self, workload: WorkloadId, plan: PlanId) {
        if let Some(slot) = self.slots.get(workload) {
            slot.store(u64::from(plan), Ordering::Release);
        }
    }

    /// The workload's plan as the kernel sees it.
    pub fn current_plan(&self, workload: WorkloadId) -> PlanId {
        let slot = self.slots.get(workload);
        slot.and_then(|slot| PlanId::try_from(slot.load(Ordering::Acquire)).ok())
            .unwrap_or(0)
    }

    /// Writes a cgroup's identity.
    pub fn set_identity(&self, cgroup: u64, identity: &Identity) -> std::io::Result<()> {
        let written = sys::set_identity(self.identities.fd().as_fd(), cgroup, identity);
        // Of a cgroup that is gone there is nothing to be told.
        if written
            .as_ref()
            .is_err_and(|error| error.kind() != std::io::ErrorKind::NotFound)
        {
            self.failures.count("IDENTITIES");
        }
        written
    }

    /// Writes all entries of a plan under a new id. On failure none of them stays.
    pub fn insert_plan(&mut self, id: PlanId, plan: &Plan) -> Result<()> {
        let after = self.used.combine(Size::of(plan), |used, more| used + more);
        for (map, entries, capacity) in after.tables(&self.capacity) {
            if entries > capacity as usize {
                self.failures.count(map);
                bail!(
                    "map {map} is full: {entries} entries wanted, capacity {capacity}; raise \
                     --max-rules (or --max-plans), or narrow the egress hosts"
                );
            }
        }
        self.used = after;
        let result = self.write_plan(id, plan);
        if result.is_err() {
            self.remove_plan(id, plan);
        }
        result
    }

    fn write_plan(&mut self, id: PlanId, plan: &Plan) -> Result<()> {
        let failures = &self.failures;
        let rule_key = |dst: &Endpoint| RuleKey {
            plan: id,
            dst: *dst,
        };
        for (dst, rule) in &plan.outbound.exact {
            let written = self.outbound.insert(rule_key(dst), rule, 0);
            failures.note("OUTBOUND", written)?;
        }
        for (key, rule) in prefixes(id, plan) {
            failures.note("PREFIXES", self.prefixes.insert(&key, rule, 0))?;
        }
        for key in owners(id, plan) {
            failures.note("OWNERS", self.owners.insert(key, 1, 0))?;
        }
        for (dst, rule) in &plan.inbound {
            let written = self.inbound.insert(rule_key(dst), rule, 0);
            failures.note("INBOUND", written)?;
        }
        for (key, backend) in backends(id, plan) {
            failures.note("BACKENDS", self.backends.insert(key, backend, 0))?;
        }
        // Last: a plan with a header is complete.
        failures.note("PLANS", self.plans.insert(id, plan.header, 0))
    }

    /// Removes all entries of a plan. Entries that are not there do not matter.
    pub fn remove_plan(&mut self, id: PlanId, plan: &Plan) {
        let _ = self.plans.remove(&id);
        for dst in plan.outbound.exact.keys() {
            let _ = self.outbound.remove(&RuleKey {
                plan: id,
                dst: *dst,
            });
        }
        for (key, _) in prefixes(id, plan) {
            let _ = self.prefixes.remove(&key);
        }
        for key in owners(id, plan) {
            let _ = self.owners.remove(&key);
        }
        for dst in plan.inbound.keys() {
            let _ = self.inbound.remove(&RuleKey {
                plan: id,
                dst: *dst,
            });
        }
        for (key, _) in backends(id, plan) {
            let _ = self.backends.remove(&key);
        }
        self.used = self.used.combine(Size::of(plan), usize::saturating_sub);
    }

    /// Makes the addresses `now` the workload's own, which were those in `before`.
    pub fn set_local_addrs(
        &mut self,
        workload: WorkloadId,
        before: &BTreeSet<Addr>,
        now: &BTreeSet<Addr>,
    ) -> Result<()> {
        for addr in now.difference(before) {
            let key = local_addr_key(workload, *addr);
            self.failures
                .note("LOCAL_ADDRS", self.local_addrs.insert(key, 1, 0))
                .context("raise --max-workloads")?;
        }
        for addr in before.difference(now) {
            let _ = self.local_addrs.remove(&local_addr_key(workload, *addr));
        }
        Ok(())
    }

    /// Makes `now` what is known of the workload's interfaces, by index, which was `before`.
    pub fn set_interfaces(
        &mut self,
        workload: WorkloadId,
        before: &BTreeMap<u32, u32>,
        now: &BTreeMap<u32, u32>,
    ) -> Result<()> {
        let key = |index| WorkloadInterface { workload, index };
        for (&index, flags) in now {
            let written = self.interfaces.insert(key(index), flags, 0);
            self.failures
                .note("INTERFACES", written)
                .context("raise --max-workloads")?;
        }
        for &index in before.keys().filter(|index| !now.contains_key(index)) {
            let _ = self.interfaces.remove(&key(index));
        }
        Ok(())
    }

    /// Makes `now` the workload's routes, which were `before`.
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
        for route in now {
            let value = Route {
                interface: route.interface,
                source: route.source.map_or(Addr::ANY, Addr::from),
            };
            let written = self.routes.insert(&key(route), value, 0);
            self.failures
                .note("ROUTES", written)
                .context("raise --max-workloads")?;
        }
        let is_gone = |route: &&RouteTo| !now.iter().any(|other| other.net == route.net);
        for route in before.iter().filter(is_gone) {
            let _ = self.routes.remove(&key(route));
        }
        Ok(())
    }

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
                .note("LISTEN_INTEREST", self.listen_interest.insert(key, 1, 0))
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
        for &port in &gone {
            let _ = self.listen_interest.remove(&workload_port(workload, port));
        }
        self.remove_sockets(|key| key.workload == workload && gone.contains(&key.endpoint.port));
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

    /// Removes what is left of a workload that was detached.
    pub fn forget_workload(&mut self, workload: WorkloadId) {
        let own = self.local_addrs.keys().flatten();
        for key in own
            .filter(|key| key.workload == workload)
            .collect::<Vec<_>>()
        {
            let _ = self.local_addrs.remove(&key);
        }
        self.remove_sockets(|key| key.workload == workload);
        // The slot's next workload must not inherit them.
        let originals = self.original_dst.keys().flatten();
        let keys: Vec<_> = originals.filter(|key| key.workload == workload).collect();
        for key in keys {
            let _ = self.original_dst.remove(&key);
        }
    }

    fn remove_sockets(&mut self, which: impl Fn(&WorkloadEndpoint) -> bool) {
        let keys: Vec<_> = self.sockets.keys().flatten().filter(which).collect();
        for key in keys {
            let _ = self.sockets.remove(&key);
        }
    }
}

/// The map of original destinations, by itself: what the relay's threads read.
pub struct Originals(Mutex<HashMap<MapData, Tuple, Original>>);

impl Originals {
    pub(super) fn open(map: MapData) -> Result<Self> {
        Ok(Self(Mutex::new(Map::LruHashMap(map).try_into()?)))
    }

    /// Where the redirected connection with these ends was going. Answers once: whoever gets that
    /// source port next must not inherit the answer.
    #[must_use]
    pub fn take(
        &self,
        workload: WorkloadId,
        client: Endpoint,
        server: Endpoint,
    ) -> Option<Original> {
        let key = Tuple {
            workload,
            client,
            server,
        };
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let original = map.get(&key, 0).ok()?;
        let _ = map.remove(&key);
        Some(original)
    }
}

/// Every entry of a plan in the trie of prefixes.
fn prefixes(plan: PlanId, of: &Plan) -> impl Iterator<Item = (Key<PrefixKey>, Rule)> {
    let key = move |table, port, net: &IpNet| {
        Key::new(
            PrefixKey::HEAD_BITS + bits(net),
            PrefixKey {
                plan,
                port,
                table,
                addr: net.network().into(),
            },
        )
    };
    let outbound = of.outbound.prefixes.iter();
    let outbound =
        outbound.map(move |((port, net), rule)| (key(PrefixKey::OUTBOUND, *port, net), *rule));
    let captured = Rule::new(Path::Proxy, Reason::VirtualInterface);
    let ranges = of.virtual_ranges.iter();
    outbound.chain(ranges.map(move |net| (key(PrefixKey::VIRTUAL, 0, net), captured)))
}

/// The length of a network's prefix where IPv4 is the mapped range of IPv6.
fn bits(net: &IpNet) -> u32 {
    match net {
        IpNet::V4(net) => Addr::V4_PREFIX + u32::from(net.prefix_len()),
        IpNet::V6(net) => u32::from(net.prefix_len()),
    }
}

fn owners(plan: PlanId, of: &Plan) -> impl Iterator<Item = OwnerKey> {
    of.owners
        .iter()
        .map(move |&(role, id)| OwnerKey { plan, role, id })
}

fn backends(plan: PlanId, of: &Plan) -> impl Iterator<Item = (BackendKey, Endpoint)> {
    (0..)
        .zip(&of.outbound.backends)
        .flat_map(move |(group, backends)| {
            (0..)
                .zip(backends)
                .map(move |(index, backend)| (BackendKey { plan, group, index }, *backend))
        })
}

fn workload_port(workload: WorkloadId, port: u16) -> WorkloadPort {
    WorkloadPort {
        workload,
        port,
        pad: 0,
    }
}

fn local_addr_key(workload: WorkloadId, addr: Addr) -> WorkloadEndpoint {
    WorkloadEndpoint {
        workload,
        endpoint: Endpoint::new(addr, 0),
    }
}
