//! Applications in the way of a Sidecar's listeners.

use super::Node;
use crate::compile::in_use;

impl Node {
    /// Asks the kernel where applications listen, and whether a listener of theirs is where a
    /// Sidecar declares one. Reads /proc, so it is not for every second.
    pub fn look_for_collisions(&mut self) {
        for (name, workload) in &mut self.workloads {
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
}
