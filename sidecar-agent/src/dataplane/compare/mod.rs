//! What is in force for a workload in the kernel, and whether it is what is wanted. Reads pins only.

mod surroundings;

use std::{collections::HashMap, hash::Hash, os::fd::OwnedFd, path::Path};

use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use sidecar_common::{
    Endpoint,
    keys::{PlanId, WorkloadId},
    values::{Identity, Word, refused_workload},
};

use super::{
    Tap,
    attach::SK_LOOKUP,
    contents,
    dump::{names, reader},
    maps::{Maps, Originals},
    netns::Netns,
    object::open_map,
    pins::{Links, PinDir, Set},
    slots::Slots,
    sys::{self, LinkTarget},
};
use crate::compile::Plan;

pub use surroundings::Place;

/// What decides for a workload.
pub struct InForce {
    /// Its slot.
    pub slot: WorkloadId,
    /// What it follows.
    pub word: Word,
    /// Who it is, to the programs.
    pub identity: Identity,
    set: Set,
    links: Links,
    maps: Maps,
    pins: PinDir,
}

/// What is compared, for whoever prints it.
#[derive(Debug, Serialize)]
pub struct Followed {
    /// The workload's slot.
    pub slot: WorkloadId,
    /// The set of programs and maps that decides.
    pub set: u16,
    /// The plan; 0: none.
    pub plan: PlanId,
}

impl InForce {
    /// What decides for the workload with this cgroup, by the links that are attached to it.
    ///
    /// # Errors
    /// If nothing does, or its maps cannot be read.
    pub fn find(pin_dir: &Path, cgroup: u64) -> Result<Self> {
        let Some(pins) = PinDir::existing(pin_dir)? else {
            bail!(
                "{} is not there: has an agent run with this --bpffs?",
                pin_dir.display()
            );
        };
        let slots = Slots::open(&pins.workloads());
        for set in pins.sets()? {
            for (slot, links) in set.workloads()? {
                let mut infos = links.infos()?.into_iter();
                let is_attached = infos.any(|(path, info)| {
                    info.target == LinkTarget::Cgroup(cgroup) && path.ends_with("connect4")
                });
                let word = slots.as_ref().map(|slots| slots.load(slot));
                let Some(word) = word.filter(|word| is_attached && word.set() == set.number) else {
                    continue;
                };
                let maps = Maps::of_set(&set, &pins.workloads(), reader::capacity(&set)?)?;
                return Ok(Self {
                    slot,
                    word,
                    identity: maps.identity(cgroup).unwrap_or_default(),
                    set,
                    links,
                    maps,
                    pins,
                });
            }
        }
        bail!(
            "no pinned link in {} that decides is attached to cgroup {cgroup}: the workload is not \
             captured",
            pin_dir.display()
        )
    }

    /// For printing.
    #[must_use]
    pub fn followed(&self) -> Followed {
        Followed {
            slot: self.slot,
            set: self.word.set(),
            plan: self.word.plan(),
        }
    }

    /// Whether an agent is at work with these pins.
    #[must_use]
    pub fn has_agent(&self) -> bool {
        self.pins.lock().is_err()
    }

    /// The program that decides inbound connections.
    ///
    /// # Errors
    /// If it is not attached to the namespace.
    pub(super) fn inbound_program(&self, netns: &Netns) -> Result<OwnedFd> {
        let attached = self
            .links
            .infos()?
            .into_iter()
            .find(|(path, info)| info.target == netns.target() && path.ends_with(SK_LOOKUP));
        let (_, link) = attached.with_context(|| {
            format!(
                "no pinned link is attached to {}: nothing inbound is captured",
                netns.path.display()
            )
        })?;
        sys::program_by_id(link.program).context("opening the program that decides")
    }

    /// The ring of decisions. There must be no agent that reads it.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn tap(&self) -> Result<Tap> {
        Tap::of_set(&self.set)
    }

    /// Removes the original destination of a connection that was given up.
    ///
    /// # Errors
    /// If the map cannot be opened.
    pub fn forget(&self, client: Endpoint, server: Endpoint) -> Result<()> {
        let originals = Originals::open(open_map(&self.set.map("ORIGINAL_DST"))?)?;
        let _ = originals.take(self.slot, client, server);
        Ok(())
    }

    /// In what the maps differ from this plan; each as a sentence.
    #[must_use]
    pub fn differences(&self, digest: &blake3::Hash, plan: &Plan) -> Vec<String> {
        let Self {
            slot,
            word,
            identity,
            ..
        } = self;
        let mut found = Vec::new();
        if word.is_suspended() {
            found.push("WORKLOADS: capture is off: everything new passes".to_owned());
        }
        if identity.workload != *slot {
            let is = identity.workload;
            found.push(format!(
                "IDENTITIES: the cgroup is workload {is}, its links say {slot}"
            ));
        }
        let id = word.plan();
        if id == 0 {
            found.push("WORKLOADS: no plan is followed: everything passes".to_owned());
        } else if refused_workload(id).is_some() {
            found.push("WORKLOADS: the plan that refuses everything is followed".to_owned());
        } else {
            self.compare_plan(id, digest, plan, &mut found);
        }
        found
    }

    fn compare_plan(&self, id: PlanId, digest: &blake3::Hash, plan: &Plan, to: &mut Vec<String>) {
        let maps = &self.maps;
        let capacity = maps.capacity().rules;
        match maps.digests.get(&id, 0) {
            Ok(found) if found == *digest.as_bytes() => {}
            Ok(found) => to.push(format!(
                "DIGESTS: plan {:.12} is in force, {:.12} is wanted: have the files changed, or \
                 are settings not the agent's?",
                blake3::Hash::from_bytes(found).to_hex(),
                digest.to_hex()
            )),
            Err(_) => to.push(format!("DIGESTS: plan {id} is not complete")),
        }
        match maps.header(id) {
            Some(found) if found == plan.header => {}
            Some(_) => to.push(format!("PLANS: the header of plan {id} is another")),
            None => to.push(format!("PLANS: plan {id} has no header")),
        }
        let rules = [
            (
                "OUTBOUND",
                &maps.outbound,
                contents::outbound(id, plan).collect::<Vec<_>>(),
            ),
            (
                "INBOUND",
                &maps.inbound,
                contents::inbound(id, plan).collect(),
            ),
        ];
        for (map, entries, wanted) in rules {
            let found = reader::entries(entries, capacity).into_iter();
            let found = found.filter(|(key, _)| key.plan == id);
            compare(
                map,
                wanted,
                found,
                |key| key.dst.to_string(),
                names::whole,
                to,
            );
        }
        let prefixes = contents::prefixes(id, plan)
            .map(|(key, rule)| ((key.prefix_len(), key.data()), rule))
            .collect();
        let keys = maps.prefixes.keys().take(capacity as usize).flatten();
        let found = keys.filter_map(|key| {
            let rule = maps.prefixes.get(&key, 0).ok()?;
            Some(((key.prefix_len(), key.data()), rule))
        });
        let found = found.filter(|((_, key), _)| key.plan == id);
        let name = |(bits, key): &(u32, _)| names::network(*bits, key);
        compare("PREFIXES", prefixes, found, name, names::whole, to);
        let found = reader::entries(&maps.backends, capacity).into_iter();
        compare(
            "BACKENDS",
            contents::backends(id, plan).collect(),
            found.filter(|(key, _)| key.plan == id),
            |key| format!("{} of group {}", key.index, key.group),
            ToString::to_string,
            to,
        );
        let found = reader::entries(&maps.owners, capacity).into_iter();
        compare(
            "OWNERS",
            contents::owners(id, plan).map(|key| (key, ())).collect(),
            found
                .filter(|(key, _)| key.plan == id)
                .map(|(key, _)| (key, ())),
            |key| names::owner(0, key).role + " " + &key.id.to_string(),
            |()| "listed".to_owned(),
            to,
        );
    }
}

/// Tells each entry of a map that is not as it has to be.
fn compare<K: Eq + Hash, V: PartialEq>(
    map: &str,
    wanted: Vec<(K, V)>,
    found: impl Iterator<Item = (K, V)>,
    name: impl Fn(&K) -> String,
    show: impl Fn(&V) -> String,
    to: &mut Vec<String>,
) {
    let mut found: HashMap<K, V> = found.collect();
    for (key, value) in wanted {
        let name = name(&key);
        let wanted = show(&value);
        match found.remove(&key) {
            Some(found) if found == value => {}
            Some(found) => to.push(format!(
                "{map} {name}: {}, has to be {wanted}",
                show(&found)
            )),
            None => to.push(format!("{map} {name}: missing, has to be {wanted}")),
        }
    }
    let more = found.iter().map(|(key, value)| {
        let (name, value) = (name(key), show(value));
        format!("{map} {name}: {value}, must not be there")
    });
    to.extend(more);
}
