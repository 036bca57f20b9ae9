//! What of a plan is in the maps: which keys, whether they are those of a plan in memory, and what
//! an earlier agent has left.

use std::collections::BTreeMap;

use aya::maps::lpm_trie::Key;
use ipnet::IpNet;
use sidecar_common::{
    Addr, Endpoint, Path, Reason,
    keys::{BackendKey, OwnerKey, PlanId, PrefixKey, RuleKey},
    values::Rule,
};

use super::maps::Capacity;
use crate::compile::Plan;

/// Entries that a plan, or all installed plans, take in each table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    plans: usize,
    outbound: usize,
    prefixes: usize,
    inbound: usize,
    backends: usize,
    owners: usize,
}

impl Size {
    /// Table, entries and capacity.
    pub fn tables(&self, capacity: &Capacity) -> [(&'static str, usize, u32); 6] {
        [
            ("PLANS", self.plans, capacity.plans),
            ("OUTBOUND", self.outbound, capacity.rules),
            ("PREFIXES", self.prefixes, capacity.rules),
            ("INBOUND", self.inbound, capacity.rules),
            ("BACKENDS", self.backends, capacity.rules),
            ("OWNERS", self.owners, capacity.rules),
        ]
    }

    /// Table by table.
    pub fn combine(self, other: Self, with: impl Fn(usize, usize) -> usize) -> Self {
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

/// The keys of one plan's entries, but for its header and digest, whose key is the plan's id.
#[derive(Default)]
pub struct Keys {
    /// In `OUTBOUND`.
    pub outbound: Vec<RuleKey>,
    /// In `PREFIXES`.
    pub prefixes: Vec<Key<PrefixKey>>,
    /// In `INBOUND`.
    pub inbound: Vec<RuleKey>,
    /// In `BACKENDS`.
    pub backends: Vec<BackendKey>,
    /// In `OWNERS`.
    pub owners: Vec<OwnerKey>,
}

impl Keys {
    /// Those of a plan in memory.
    pub fn of(id: PlanId, plan: &Plan) -> Self {
        Self {
            outbound: outbound(id, plan).map(|(key, _)| key).collect(),
            prefixes: prefixes(id, plan).map(|(key, _)| key).collect(),
            inbound: inbound(id, plan).map(|(key, _)| key).collect(),
            backends: backends(id, plan).map(|(key, _)| key).collect(),
            owners: owners(id, plan).collect(),
        }
    }

    /// How many there are.
    pub fn size(&self) -> Size {
        Size {
            plans: 1,
            outbound: self.outbound.len(),
            prefixes: self.prefixes.len(),
            inbound: self.inbound.len(),
            backends: self.backends.len(),
            owners: self.owners.len(),
        }
    }
}

/// The keys of many plans, each read from the maps, by plan.
pub fn by_plan<'a, K: 'a>(
    found: &'a mut BTreeMap<PlanId, Keys>,
    keys: impl Iterator<Item = K> + 'a,
    plan: impl Fn(&K) -> PlanId + 'a,
    list: impl Fn(&mut Keys) -> &mut Vec<K> + 'a,
) {
    for key in keys {
        list(found.entry(plan(&key)).or_default()).push(key);
    }
}

/// Entries of `OUTBOUND`.
pub fn outbound(plan: PlanId, of: &Plan) -> impl Iterator<Item = (RuleKey, Rule)> {
    of.outbound
        .exact
        .iter()
        .map(move |(&dst, &rule)| (RuleKey { plan, dst }, rule))
}

/// Entries of `INBOUND`.
pub fn inbound(plan: PlanId, of: &Plan) -> impl Iterator<Item = (RuleKey, Rule)> {
    of.inbound
        .iter()
        .map(move |(&dst, &rule)| (RuleKey { plan, dst }, rule))
}

/// Entries of `PREFIXES`.
pub fn prefixes(plan: PlanId, of: &Plan) -> impl Iterator<Item = (Key<PrefixKey>, Rule)> {
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
pub fn bits(net: &IpNet) -> u32 {
    match net {
        IpNet::V4(net) => Addr::V4_PREFIX + u32::from(net.prefix_len()),
        IpNet::V6(net) => u32::from(net.prefix_len()),
    }
}

/// Keys of `OWNERS`.
pub fn owners(plan: PlanId, of: &Plan) -> impl Iterator<Item = OwnerKey> {
    of.owners
        .iter()
        .map(move |&(role, id)| OwnerKey { plan, role, id })
}

/// Entries of `BACKENDS`.
pub fn backends(plan: PlanId, of: &Plan) -> impl Iterator<Item = (BackendKey, Endpoint)> {
    (0..)
        .zip(&of.outbound.backends)
        .flat_map(move |(group, backends)| {
            (0..)
                .zip(backends)
                .map(move |(index, backend)| (BackendKey { plan, group, index }, *backend))
        })
}
