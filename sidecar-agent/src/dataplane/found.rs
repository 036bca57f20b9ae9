//! What an earlier agent has left attached: which workloads, by which sets, with which plans.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use sidecar_common::{keys::WorkloadId, values::Word};

use super::{
    Binding,
    maps::{Maps, ToldWorkload},
    pins::{Links, Set},
    sys::{LinkInfo, LinkTarget},
};

/// A workload that is attached, and that no workload of this agent's has claimed yet.
pub struct Found {
    /// What it follows.
    pub word: Word,
    /// Its links.
    pub links: Links,
    /// What they are attached to; without what is gone.
    pub targets: BTreeSet<LinkTarget>,
    /// What the kernel was told of it; nothing, where that is in the maps of another set.
    pub told: ToldWorkload,
}

impl Found {
    /// Whether it is this workload: its cgroup tells. (Its network namespace may be another now.)
    pub fn is(&self, binding: &Binding<'_>) -> bool {
        self.targets
            .contains(&LinkTarget::Cgroup(binding.cgroup.id))
    }

    /// Whether a cgroup it is attached to is still there.
    pub fn is_alive(&self) -> bool {
        self.cgroups().next().is_some()
    }

    /// The cgroups it is attached to, by id.
    pub fn cgroups(&self) -> impl Iterator<Item = u64> {
        self.targets.iter().filter_map(|target| match target {
            LinkTarget::Cgroup(id) => Some(*id),
            _ => None,
        })
    }
}

/// Every workload that programs of these sets decide for.
///
/// A workload in the directory of a set that does not decide for it was on its way in or out: its
/// links are removed.
pub fn look(sets: &[Set], maps: &Maps) -> Result<BTreeMap<WorkloadId, Found>> {
    let words = maps.words();
    let mut told = maps.told_workloads();
    let mut found = BTreeMap::new();
    for set in sets {
        for (workload, links) in set.workloads()? {
            let word = words.get(&workload).copied().unwrap_or_default();
            if word.set() != set.number || word.plan() == 0 {
                links.remove()?;
                continue;
            }
            let of_own_set = set.number == maps.set();
            found.insert(
                workload,
                Found {
                    word,
                    targets: targets(&links)?,
                    links,
                    told: told
                        .remove(&workload)
                        .filter(|_| of_own_set)
                        .unwrap_or_default(),
                },
            );
        }
    }
    Ok(found)
}

fn targets(links: &Links) -> Result<BTreeSet<LinkTarget>> {
    let is_there = |info: &LinkInfo| {
        !matches!(
            info.target,
            LinkTarget::Cgroup(0) | LinkTarget::Netns(0) | LinkTarget::Other
        )
    };
    Ok(links
        .infos()?
        .into_iter()
        .map(|(_, info)| info)
        .filter(is_there)
        .map(|info| info.target)
        .collect())
}
