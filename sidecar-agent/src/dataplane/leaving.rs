//! Workloads that leave, or have left: nothing of them stays in the kernel.

use std::collections::{BTreeMap, BTreeSet};

use sidecar_common::{
    keys::WorkloadId,
    values::{Identity, Word},
};

use super::{
    Dataplane,
    found::Found,
    maps::ToldWorkload,
    pins::{Links, Set},
};

impl Dataplane {
    /// Lets go what an earlier agent has left attached and nobody has claimed: what is wanted is
    /// known now, and it is not that. `wanted`: ids of cgroups of workloads that could not be
    /// attached yet; they go on with what they follow.
    pub fn let_go_unclaimed(&mut self, wanted: &BTreeSet<u64>) {
        self.let_go(|found| !found.cgroups().any(|id| wanted.contains(&id)));
    }

    /// Workloads that an earlier agent has left attached and nobody has claimed: slots, and the ids
    /// of the cgroups.
    #[must_use]
    pub fn unclaimed(&self) -> BTreeMap<WorkloadId, Vec<u64>> {
        self.found
            .iter()
            .map(|(&workload, found)| (workload, found.cgroups().collect()))
            .collect()
    }

    /// Detaches from a workload and forgets it. What programs (and the relay) have entered of its
    /// sockets and connections is removed by the next [`refresh`](Self::refresh), or before its slot
    /// is given to another workload.
    pub fn detach(&mut self, workload: WorkloadId) {
        self.maps.store(workload, Word::default());
        if let Some(mut attachment) = self.attachments.remove(&workload) {
            attachment.withdraw_identity(&self.maps);
            attachment.undo_setup();
            for links in [&attachment.links].into_iter().chain(&attachment.replaces) {
                remove_links(links);
            }
            self.forget(workload, &attachment.told());
        }
        self.retire_plans();
    }

    /// Removes what the maps have of workloads to which nothing is attached: an agent was ended in
    /// the middle of it.
    pub(super) fn forget_unattached(&mut self) {
        let mut told = self.maps.told_workloads();
        for workload in self.maps.words().into_keys() {
            told.entry(workload).or_default();
        }
        let set = self.maps.set();
        for (workload, told) in told {
            match self.found.get(&workload) {
                None => {
                    self.maps.store(workload, Word::default());
                    self.forget(workload, &told);
                }
                // It was on its way into this set.
                Some(found) if found.word.set() != set => self.maps.forget_told(workload, &told),
                Some(_) => {}
            }
        }
        let found = &self.found;
        self.maps.forget_entered(|workload| {
            let found = found.get(&workload);
            found.is_none_or(|found| found.word.set() != set)
        });
        self.leaving.clear();
    }

    /// Leaves nothing of a workload, of which the kernel was told this, but what all that are gone
    /// had counted, and what [`sweep`](Self::sweep) removes.
    fn forget(&mut self, workload: WorkloadId, told: &ToldWorkload) {
        self.maps.forget_told(workload, told);
        self.leaving.insert(workload);
        self.counters.retire(workload);
    }

    /// Removes what is left of all that were detached since the last time: once for many, as it
    /// takes a walk through whole maps.
    pub(super) fn sweep(&mut self) {
        let leaving = std::mem::take(&mut self.leaving);
        if !leaving.is_empty() {
            self.maps
                .forget_entered(|workload| leaving.contains(&workload));
        }
    }

    /// Detaches from workloads that an earlier agent has left.
    pub(super) fn let_go(&mut self, which: impl Fn(&Found) -> bool) {
        let gone: Vec<_> = self.found.extract_if(.., |_, found| which(found)).collect();
        for (workload, found) in gone {
            tracing::info!(
                workload,
                cgroups = ?found.cgroups().collect::<Vec<_>>(),
                "detached from a workload that nobody wants captured any more"
            );
            self.maps.store(workload, Word::default());
            for cgroup in found.cgroups() {
                let _ = self.maps.set_identity(cgroup, &Identity::default());
            }
            remove_links(&found.links);
            self.forget(workload, &found.told);
        }
        self.retire_plans();
        self.remove_old_sets();
    }

    /// Removes the sets that decide for nobody any more.
    pub(super) fn remove_old_sets(&mut self) {
        let is_unused = |set: &mut Set| set.has_links().is_ok_and(|has_links| !has_links);
        for set in self.old_sets.extract_if(.., is_unused) {
            tracing::info!(
                set = set.number,
                "removing a set of maps that is not used any more"
            );
            if let Err(error) = set.remove() {
                tracing::warn!("{error:#}");
            }
        }
    }
}

/// Removes links, as far as that goes.
pub fn remove_links(links: &Links) {
    if let Err(error) = links.remove() {
        tracing::warn!("{error:#}");
    }
}
