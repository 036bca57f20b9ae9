//! Typed handles to the maps, and a plan's way into them and out again.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result, bail};
use aya::maps::{HashMap, LpmTrie, Map, MapData, SockHash, lpm_trie::Key};
use ipnet::IpNet;
use sidecar_common::{
    Addr, Endpoint,
    keys::{
        BackendKey, OwnerKey, PlanId, PrefixKey, RouteKey, RuleKey, Tuple, WorkloadEndpoint,
        WorkloadId, WorkloadInterface, WorkloadPort,
    },
    values::{
        DECISION_SLOTS, Identity, Original, PlanHeader, Route, Rule, Word, refused_workload,
        refusing_plan,
    },
};

use super::{
    contents::{self, Keys, Size, bits, by_plan},
    network::RouteTo,
    object::{DIGESTS, Objects, open_map},
    pins::Set,
    slots::Slots,
    sys,
    usage::Failures,
};
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
    pub fn entries(&self) -> [(&'static str, u32); 13] {
        [
            // Each workload has one beside, that refuses everything.
            ("PLANS", self.plans.saturating_add(self.workloads)),
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

/// What the kernel was told of a workload.
#[derive(Default)]
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

/// A plan's digest.
pub type Digest = [u8; blake3::OUT_LEN];

/// All maps.
pub struct Maps {
    capacity: Capacity,
    /// The number of the set they are.
    set: u16,
    used: Size,
    slots: Slots,
    identities: MapData,
    pub(super) plans: HashMap<MapData, PlanId, PlanHeader>,
    pub(super) digests: HashMap<MapData, PlanId, Digest>,
    pub(super) outbound: HashMap<MapData, RuleKey, Rule>,
    pub(super) prefixes: LpmTrie<MapData, PrefixKey, Rule>,
    pub(super) inbound: HashMap<MapData, RuleKey, Rule>,
    pub(super) backends: HashMap<MapData, BackendKey, Endpoint>,
    pub(super) owners: HashMap<MapData, OwnerKey, u8>,
    pub(super) interfaces: HashMap<MapData, WorkloadInterface, u32>,
    pub(super) routes: LpmTrie<MapData, RouteKey, Route>,
    pub(super) local_addrs: HashMap<MapData, WorkloadEndpoint, u8>,
    pub(super) listen_interest: HashMap<MapData, WorkloadPort, u64>,
    pub(super) sockets: SockHash<MapData, WorkloadEndpoint>,
    pub(super) original_dst: HashMap<MapData, Tuple, Original>,
    failures: Failures,
}

impl Maps {
    /// Opens every map by its pin.
    pub fn open(objects: &Objects, capacity: Capacity) -> Result<Self> {
        Self::of_set(objects.set(), objects.workloads(), capacity)
    }

    /// The same, of a set whose programs need not be loaded. `workloads`: the pin of the map that all
    /// sets share.
    pub fn of_set(set: &Set, workloads: &Path, capacity: Capacity) -> Result<Self> {
        let open = |name| open_map(&set.map(name));
        let hash = |name| open(name).map(Map::HashMap);
        Ok(Self {
            capacity,
            set: set.number,
            used: Size::default(),
            slots: Slots::map(&open_map(workloads)?)?,
            identities: open("IDENTITIES")?,
            plans: hash("PLANS")?.try_into()?,
            digests: hash(DIGESTS)?.try_into()?,
            outbound: hash("OUTBOUND")?.try_into()?,
            prefixes: Map::LpmTrie(open("PREFIXES")?).try_into()?,
            inbound: hash("INBOUND")?.try_into()?,
            backends: hash("BACKENDS")?.try_into()?,
            owners: hash("OWNERS")?.try_into()?,
            interfaces: hash("INTERFACES")?.try_into()?,
            routes: Map::LpmTrie(open("ROUTES")?).try_into()?,
            local_addrs: hash("LOCAL_ADDRS")?.try_into()?,
            listen_interest: hash("LISTEN_INTEREST")?.try_into()?,
            sockets: Map::SockHash(open("SOCKETS")?).try_into()?,
            original_dst: Map::LruHashMap(open("ORIGINAL_DST")?).try_into()?,
            failures: Failures::default(),
        })
    }

    /// The configured capacities.
    pub fn capacity(&self) -> &Capacity {
        &self.capacity
    }

    /// The number of the set they are.
    pub fn set(&self) -> u16 {
        self.set
    }

    /// Updates that the kernel refused, by map.
    pub fn failures(&self) -> &Failures {
        &self.failures
    }

    /// Name, entries and capacity of the tables that plans fill.
    pub fn usage(&self) -> Vec<(&'static str, usize, u32)> {
        self.used.tables(&self.capacity).to_vec()
    }

    /// Makes this what the workload follows: one store.
    pub fn store(&self, workload: WorkloadId, word: Word) {
        self.slots.store(workload, word);
    }

    /// What the workload follows, as the kernel sees it.
    pub fn word(&self, workload: WorkloadId) -> Word {
        self.slots.load(workload)
    }

    /// The workloads that follow something, of whatever set.
    pub fn words(&self) -> BTreeMap<WorkloadId, Word> {
        self.slots.in_use().collect()
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

    /// A cgroup's identity; `None` where no program is attached to it.
    pub fn identity(&self, cgroup: u64) -> Option<Identity> {
        sys::identity(self.identities.fd().as_fd(), cgroup).ok()
    }

    /// The header of a plan.
    pub fn header(&self, plan: PlanId) -> Option<PlanHeader> {
        self.plans.get(&plan, 0).ok()
    }

    /// Has the plan of a workload that refuses everything be there.
    pub fn reserve(&mut self, workload: WorkloadId, header: &PlanHeader) -> Result<()> {
        let written = self.plans.insert(refusing_plan(workload), header, 0);
        self.failures
            .note("PLANS", written)
            .context("setting aside what refuses everything")
    }

    /// Every plan that has entries, with its digest if it is complete; not those that refuse
    /// everything.
    pub fn found_plans(&self) -> BTreeMap<PlanId, (Option<Digest>, Keys)> {
        let mut found = BTreeMap::new();
        by_plan(
            &mut found,
            self.outbound.keys().flatten(),
            |key| key.plan,
            |keys| &mut keys.outbound,
        );
        by_plan(
            &mut found,
            self.inbound.keys().flatten(),
            |key| key.plan,
            |keys| &mut keys.inbound,
        );
        let prefix_plan = |key: &Key<PrefixKey>| key.data().plan;
        by_plan(
            &mut found,
            self.prefixes.keys().flatten(),
            prefix_plan,
            |keys| &mut keys.prefixes,
        );
        by_plan(
            &mut found,
            self.backends.keys().flatten(),
            |key| key.plan,
            |keys| &mut keys.backends,
        );
        by_plan(
            &mut found,
            self.owners.keys().flatten(),
            |key| key.plan,
            |keys| &mut keys.owners,
        );
        let plans = self.plans.keys().chain(self.digests.keys()).flatten();
        for plan in plans.filter(|plan| refused_workload(*plan).is_none()) {
            found.entry(plan).or_default();
        }
        let complete = |plan: &PlanId| {
            self.header(*plan)?;
            self.digests.get(plan, 0).ok()
        };
        found
            .into_iter()
            .map(|(plan, keys)| (plan, (complete(&plan), keys)))
            .collect()
    }

    /// Takes entries of an earlier agent's into account.
    pub fn adopt_plan(&mut self, keys: &Keys) {
        self.used = self.used.combine(keys.size(), |used, more| used + more);
    }

    /// Whether the entries under this id, which has these keys, are those of `plan`.
    pub fn holds(&self, id: PlanId, keys: &Keys, plan: &Plan) -> bool {
        fn same<K, V: PartialEq>(
            mut entries: impl Iterator<Item = (K, V)>,
            get: impl Fn(&K) -> Option<V>,
        ) -> bool {
            entries.all(|(key, value)| get(&key) == Some(value))
        }
        self.header(id) == Some(plan.header)
            && keys.size() == Keys::of(id, plan).size()
            && same(contents::outbound(id, plan), |key| {
                self.outbound.get(key, 0).ok()
            })
            && same(contents::inbound(id, plan), |key| {
                self.inbound.get(key, 0).ok()
            })
            && same(contents::prefixes(id, plan), |key| {
                self.prefixes.get(key, 0).ok()
            })
            && same(contents::backends(id, plan), |key| {
                self.backends.get(key, 0).ok()
            })
            && contents::owners(id, plan).all(|key| self.owners.get(&key, 0).is_ok())
    }

    /// Writes all entries of a plan under a new id. On failure none of them stays.
    pub fn insert_plan(&mut self, id: PlanId, digest: &Digest, plan: &Plan) -> Result<()> {
        let keys = Keys::of(id, plan);
        let after = self.used.combine(keys.size(), |used, more| used + more);
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
        let result = self.write_plan(id, digest, plan);
        if result.is_err() {
            self.remove_plan(id, &keys);
        }
        result
    }

    fn write_plan(&mut self, id: PlanId, digest: &Digest, plan: &Plan) -> Result<()> {
        let failures = &self.failures;
        for (key, rule) in contents::outbound(id, plan) {
            failures.note("OUTBOUND", self.outbound.insert(key, rule, 0))?;
        }
        for (key, rule) in contents::prefixes(id, plan) {
            failures.note("PREFIXES", self.prefixes.insert(&key, rule, 0))?;
        }
        for key in contents::owners(id, plan) {
            failures.note("OWNERS", self.owners.insert(key, 1, 0))?;
        }
        for (key, rule) in contents::inbound(id, plan) {
            failures.note("INBOUND", self.inbound.insert(key, rule, 0))?;
        }
        for (key, backend) in contents::backends(id, plan) {
            failures.note("BACKENDS", self.backends.insert(key, backend, 0))?;
        }
        failures.note("DIGESTS", self.digests.insert(id, digest, 0))?;
        // Last: a plan with a header is complete.
        failures.note("PLANS", self.plans.insert(id, plan.header, 0))
    }

    /// Removes all entries of a plan. Entries that are not there do not matter.
    pub fn remove_plan(&mut self, id: PlanId, keys: &Keys) {
        let _ = self.plans.remove(&id);
        let _ = self.digests.remove(&id);
        for key in &keys.outbound {
            let _ = self.outbound.remove(key);
        }
        for key in &keys.prefixes {
            let _ = self.prefixes.remove(key);
        }
        for key in &keys.owners {
            let _ = self.owners.remove(key);
        }
        for key in &keys.inbound {
            let _ = self.inbound.remove(key);
        }
        for key in &keys.backends {
            let _ = self.backends.remove(key);
        }
        self.used = self.used.combine(keys.size(), usize::saturating_sub);
    }

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

    /// Removes what programs (and the relay) have entered for workloads that were detached: the next
    /// workloads in their slots must not inherit it. It walks all of `SOCKETS` and `ORIGINAL_DST`,
    /// so it is for many workloads at a time.
    pub fn forget_entered(&mut self, is_gone: impl Fn(WorkloadId) -> bool) {
        self.remove_sockets(|key| is_gone(key.workload));
        let originals = self.original_dst.keys().flatten();
        let keys: Vec<_> = originals.filter(|key| is_gone(key.workload)).collect();
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

/// A route as it was before it was told to the kernel.
pub(super) fn route_to(key: &Key<RouteKey>, route: &Route) -> RouteTo {
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
