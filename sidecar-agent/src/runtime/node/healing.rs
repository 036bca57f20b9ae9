//! What another tool has detached, or unpinned, is attached again: a few workloads at a time.

use std::ops::Bound;

use super::Node;
use crate::dataplane::scratch;

/// Calls of [`Node::heal`] in which every workload is looked at once: about as many seconds.
const ROUND: usize = 10;

impl Node {
    /// Looks at the links of the next few workloads, and mends what is broken.
    pub(super) fn heal(&mut self) {
        // What cannot be opened now would be taken for gone. Workloads that wait tell why.
        if self.dataplane.check_descriptors().is_err() {
            return;
        }
        self.restore_pins();
        for name in self.next_to_look_at() {
            self.heal_one(&name);
            self.looked_at = name;
        }
    }

    /// Those that come after the one that was looked at last, and then the first ones.
    fn next_to_look_at(&self) -> Vec<String> {
        let after = (
            Bound::Excluded(self.looked_at.as_str()),
            Bound::<&str>::Unbounded,
        );
        let after = self.workloads.range::<str, _>(after);
        let names = after.chain(&self.workloads).map(|(name, _)| name.clone());
        names.take(self.workloads.len().div_ceil(ROUND)).collect()
    }

    fn heal_one(&mut self, name: &str) {
        let Some(workload) = self.workloads.get_mut(name) else {
            return;
        };
        let Some(live) = &workload.live else {
            workload.damage = None;
            return;
        };
        // An `explain --kernel` that was killed there.
        scratch::collect(&live.place.cgroup.path);
        let broken = self.dataplane.broken_links(live.id);
        // What is gone itself is detached by the kernel, and let go when the node is reconciled.
        let is_there = || {
            live.place
                .is_current(&self.cgroup_root, &workload.wanted.workload)
        };
        if broken.is_empty() || !is_there() {
            workload.damage = None;
            return;
        }
        let count = broken.len() as u64;
        let broken = broken.join(", ");
        workload.damage = match self.dataplane.heal(live.id, &live.place.binding()) {
            Ok(()) => {
                self.healed.links += count;
                tracing::warn!(
                    workload = name,
                    links = broken,
                    "links were detached, or their pins removed, behind the agent's back; what is \
                     new has passed until now; attached again"
                );
                None
            }
            Err(error) => {
                let damage = format!(
                    "links were detached behind the agent's back ({broken}), and cannot be \
                     attached again: {error:#}"
                );
                if workload.damage.as_ref() != Some(&damage) {
                    tracing::warn!(workload = name, "{damage}");
                }
                Some(damage)
            }
        };
    }

    fn restore_pins(&mut self) {
        let problem = match self.dataplane.restore_pins() {
            Ok(restored) => {
                self.healed.map_pins += restored.len() as u64;
                if !restored.is_empty() {
                    tracing::warn!(
                        pins = ?restored,
                        "pins of maps were removed behind the agent's back; pinned again"
                    );
                }
                None
            }
            Err(error) => Some(format!("{error:#}")),
        };
        if problem != self.pins_problem
            && let Some(problem) = &problem
        {
            tracing::warn!("pins of maps are missing: {problem}");
        }
        self.pins_problem = problem;
    }
}
