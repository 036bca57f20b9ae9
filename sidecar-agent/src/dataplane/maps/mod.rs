//! Typed handles to the maps.

mod capacity;
mod originals;
mod plans;
mod sockets;
mod told;

use std::{collections::BTreeMap, os::fd::AsFd, path::Path};

use anyhow::Result;
use aya::maps::{HashMap, LpmTrie, Map, MapData, SockHash};
use sidecar_common::{
    Endpoint,
    keys::{
        BackendKey, OwnerKey, PlanId, PrefixKey, RouteKey, RuleKey, Slot, Tuple, WorkloadEndpoint,
        WorkloadId, WorkloadInterface, WorkloadPort,
    },
    values::{Identity, Original, PlanHeader, Route, Rule, Word},
};

use super::{
    contents::Size,
    object::{DIGESTS, Objects, open_map},
    pins::Set,
    slots::Slots,
    sys,
    usage::Failures,
};

pub use self::{
    capacity::Capacity,
    originals::Originals,
    told::{ToldWorkload, route_to},
};

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
    pub(super) destinations: HashMap<MapData, Slot, Endpoint>,
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
            destinations: hash("DESTINATIONS")?.try_into()?,
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
}
