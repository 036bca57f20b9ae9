//! The maps of one set, opened and read.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use aya::{
    Pod,
    maps::{HashMap, MapData, MapInfo},
};
use sidecar_common::values::DECISION_SLOTS;

use super::{
    Dump, What, names,
    rows::{
        BackendRow, CounterRow, InterfaceRow, ListenInterestRow, LocalAddrRow, RouteRow, SocketRow,
    },
};
use crate::dataplane::{
    counters::Counters,
    maps::{Capacity, Maps, route_to},
    object::DIGESTS,
    pins::{PinDir, Set},
};

/// Capacities as the maps of a set have them.
pub fn capacity(set: &Set) -> Result<Capacity> {
    let of = |name: &str| {
        let info = MapInfo::from_pin(set.map(name));
        let info =
            info.with_context(|| format!("asking for the size of {}", set.map(name).display()));
        info.map(|info| info.max_entries())
    };
    Ok(Capacity {
        workloads: of("COUNTERS")? / DECISION_SLOTS,
        plans: of(DIGESTS)?,
        rules: of("OUTBOUND")?,
        sockets: of("SOCKETS")?,
        original_dst: of("ORIGINAL_DST")?,
    })
}

/// The maps of a set.
pub struct Reader {
    set: u16,
    maps: Maps,
    counters: Counters,
}

/// The entries of a hash map, each once. Where entries are removed meanwhile, the kernel begins anew,
/// so there is an end.
pub fn entries<K: Pod, V: Pod>(map: &HashMap<MapData, K, V>, most: u32) -> Vec<(K, V)> {
    let keys = map.keys().take(most as usize).flatten();
    keys.filter_map(|key| Some((key, map.get(&key, 0).ok()?)))
        .collect()
}

/// Adds rows, in their order.
fn add<R: Ord>(to: &mut Option<Vec<R>>, rows: impl Iterator<Item = R>) {
    let to = to.get_or_insert_default();
    to.extend(rows);
    to.sort_unstable();
    to.dedup();
}

impl Reader {
    /// Opens them.
    pub fn open(pins: &PinDir, set: &Set) -> Result<Self> {
        let capacity = capacity(set)?;
        Ok(Self {
            set: set.number,
            maps: Maps::of_set(set, &pins.workloads(), capacity)?,
            counters: Counters::of_set(set, &capacity)?,
        })
    }

    /// Adds what is wanted; of the cgroups with these ids, their storage.
    pub fn fill(&self, dump: &mut Dump, wants: impl Fn(What) -> bool, cgroups: &[u64]) {
        let Self { set, maps, .. } = self;
        let set = *set;
        let capacities = BTreeMap::from(maps.capacity().entries());
        let most = |name| capacities.get(name).copied().unwrap_or_default();
        if wants(What::Plans) {
            let found = entries(&maps.plans, most("PLANS"));
            let rows = found.iter().map(|(plan, header)| {
                let digest = maps.digests.get(plan, 0).ok();
                names::plan(set, *plan, header, digest)
            });
            add(&mut dump.plans, rows);
        }
        if wants(What::Outbound) {
            let found = entries(&maps.outbound, most("OUTBOUND"));
            let rows = found.iter().map(|(key, rule)| names::exact(set, key, rule));
            add(&mut dump.outbound, rows);
        }
        if wants(What::Inbound) {
            let found = entries(&maps.inbound, most("INBOUND"));
            let rows = found.iter().map(|(key, rule)| names::exact(set, key, rule));
            add(&mut dump.inbound, rows);
        }
        if wants(What::Prefixes) {
            let keys = maps.prefixes.keys().take(most("PREFIXES") as usize);
            let found = keys.flatten().filter_map(|key| {
                let rule = maps.prefixes.get(&key, 0).ok()?;
                Some(names::prefix(set, &key, &rule))
            });
            add(&mut dump.prefixes, found);
        }
        if wants(What::Backends) {
            let found = entries(&maps.backends, most("BACKENDS")).into_iter();
            let rows = found.map(|(key, target)| BackendRow {
                set,
                plan: key.plan,
                group: key.group,
                index: key.index,
                target: target.to_string(),
            });
            add(&mut dump.backends, rows);
        }
        if wants(What::Owners) {
            let found = entries(&maps.owners, most("OWNERS")).into_iter();
            add(
                &mut dump.owners,
                found.map(|(key, _)| names::owner(set, &key)),
            );
        }
        if wants(What::Interfaces) {
            let found = entries(&maps.interfaces, most("INTERFACES")).into_iter();
            let rows = found.map(|(key, flags)| InterfaceRow {
                set,
                workload: key.workload,
                plan: key.plan,
                index: key.index,
                flags: names::set_in(&names::INTERFACE, flags),
            });
            add(&mut dump.interfaces, rows);
        }
        if wants(What::Routes) {
            let keys = maps.routes.keys().take(most("ROUTES") as usize);
            let found = keys.flatten().filter_map(|key| {
                let route = route_to(&key, &maps.routes.get(&key, 0).ok()?);
                Some(RouteRow {
                    set,
                    workload: key.data().workload,
                    destination: route.net.to_string(),
                    interface: route.interface,
                    source: route.source.map(|source| source.to_string()),
                })
            });
            add(&mut dump.routes, found);
        }
        self.fill_workloads(dump, wants, most, cgroups);
    }

    /// What belongs to workloads, and not to plans.
    fn fill_workloads(
        &self,
        dump: &mut Dump,
        wants: impl Fn(What) -> bool,
        most: impl Fn(&'static str) -> u32,
        cgroups: &[u64],
    ) {
        let Self {
            set,
            maps,
            counters,
        } = self;
        let set = *set;
        if wants(What::LocalAddrs) {
            let found = entries(&maps.local_addrs, most("LOCAL_ADDRS")).into_iter();
            let rows = found.map(|(key, _)| LocalAddrRow {
                set,
                workload: key.workload,
                address: key.endpoint.addr.to_string(),
            });
            add(&mut dump.local_addrs, rows);
        }
        if wants(What::ListenInterest) {
            let found = entries(&maps.listen_interest, most("LISTEN_INTEREST")).into_iter();
            let rows = found.map(|(key, opened)| ListenInterestRow {
                set,
                workload: key.workload,
                port: key.port,
                opened,
            });
            add(&mut dump.listen_interest, rows);
        }
        if wants(What::Sockets) {
            let keys = maps.sockets.keys().take(most("SOCKETS") as usize);
            let rows = keys.flatten().map(|key| SocketRow {
                set,
                workload: key.workload,
                listens: key.endpoint.to_string(),
            });
            add(&mut dump.sockets, rows);
        }
        if wants(What::OriginalDst) {
            let found = entries(&maps.original_dst, most("ORIGINAL_DST"));
            let rows = found
                .iter()
                .map(|(key, original)| names::original(set, key, original));
            add(&mut dump.original_dst, rows);
        }
        if wants(What::Destinations) {
            let found = entries(&maps.destinations, most("DESTINATIONS"));
            let rows = found
                .iter()
                .map(|(key, destination)| names::destination(set, *key, destination));
            add(&mut dump.destinations, rows);
        }
        if wants(What::Identities) {
            let rows = cgroups
                .iter()
                .filter_map(|&cgroup| Some(names::identity(set, cgroup, &maps.identity(cgroup)?)));
            add(&mut dump.identities, rows);
        }
        if wants(What::Counters) {
            let workloads = 0..maps.capacity().workloads;
            let rows = workloads.flat_map(|workload| {
                let counts = counters.of(workload).into_iter();
                counts.map(move |(direction, path, reason, count)| CounterRow {
                    set,
                    workload,
                    direction: direction.name(),
                    path: path.name(),
                    reason: reason.name(),
                    count,
                })
            });
            add(&mut dump.counters, rows);
        }
    }
}
