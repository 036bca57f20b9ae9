//! Looking again for what changes without telling us.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Instant,
};

use sidecar_common::{Endpoint, keys::WorkloadId};

use super::{Dataplane, Links, leaving::remove_links, listeners};

/// Looking again for what changes without telling us, see [`Dataplane::begin_refresh`].
pub struct Refresh {
    /// The listening sockets that the kernel knew when it began.
    sockets: BTreeMap<WorkloadId, BTreeSet<Endpoint>>,
    /// Workloads that were not looked at yet.
    workloads: VecDeque<WorkloadId>,
}

impl Dataplane {
    /// Looks again for what changes without telling us: addresses of the namespaces, listening
    /// sockets that a full map or a race has missed; and deletes plans that nobody uses, and what
    /// detached workloads have left.
    pub fn refresh(&mut self) {
        let mut refresh = self.begin_refresh();
        while self.refresh_next(&mut refresh) {}
    }

    /// The same in steps, of which each takes little time.
    pub fn begin_refresh(&mut self) -> Refresh {
        self.sweep();
        let sockets = self.maps.sockets();
        self.counted.sockets = sockets.values().map(BTreeSet::len).sum();
        Refresh {
            sockets,
            workloads: self.attachments.keys().copied().collect(),
        }
    }

    /// The next step; false: that was the last one.
    pub fn refresh_next(&mut self, refresh: &mut Refresh) -> bool {
        let Some(workload) = refresh.workloads.pop_front() else {
            self.remove_expired();
            return false;
        };
        // Detached meanwhile.
        let Some(attachment) = self.attachments.get_mut(&workload) else {
            return true;
        };
        if let Err(error) = attachment.refresh(&mut self.maps, self.grace) {
            tracing::debug!(workload, "{error:#}");
        }
        // /proc is slow to read: only where a socket may be missing in the map.
        let known = refresh.sockets.remove(&workload).unwrap_or_default();
        let is_known = |port: &u16| known.iter().any(|endpoint| endpoint.port == *port);
        let missed = self.counters.missed(workload);
        if missed != attachment.missed || !attachment.listen_ports.iter().all(is_known) {
            attachment.missed = missed;
            let ports = attachment.listen_ports.clone();
            listeners::enter_existing(&mut self.maps, workload, attachment, &ports);
        }
        listeners::make_transparent(&self.maps, workload, attachment);
        true
    }

    /// Deletes what was kept for a while, and need not be any longer.
    fn remove_expired(&mut self) {
        self.plans.remove_expired(&mut self.maps, self.grace);
        let grace = self.grace;
        let expired = |(since, _): &mut (Instant, Links)| since.elapsed() > grace;
        for (_, links) in self.retired_links.extract_if(.., expired) {
            remove_links(&links);
        }
        self.remove_old_sets();
    }
}
