//! Applications in the way of a Sidecar's listeners.

use super::Node;
use crate::compile::in_use;

impl Node {
    /// Has every workload be looked at, by [`advance`](Self::advance). It reads /proc, so it is not for
    /// every second.
    pub fn look_for_collisions(&mut self) {
        if self.uninspected.is_empty() {
            self.uninspected = self.workloads.keys().cloned().collect();
        }
    }

    /// Asks the kernel where a workload's applications listen, and whether a listener of theirs is where
    /// a Sidecar declares one.
    pub(super) fn inspect(&mut self, name: &str) {
        let Some(workload) = self.workloads.get_mut(name) else {
            return;
        };
        let plan = &workload.wanted.plan;
        let ports = in_use::ports(plan);
        let listening = workload
            .live
            .as_ref()
            .map(|live| self.dataplane.listening(live.id, &ports))
            .unwrap_or_default();
        let found = in_use::collisions(plan, name, &listening);
        let found = self.places.diagnostics(&found);
        for diagnostic in &found {
            if !workload.in_use.contains(diagnostic) {
                tracing::warn!(code = diagnostic.code, "{diagnostic}");
            }
        }
        workload.in_use = found;
    }
}
