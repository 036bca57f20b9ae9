//! What can be asked of what is attached.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use sidecar_common::{
    Endpoint,
    keys::WorkloadId,
    values::{Lost, Word},
};

use super::{
    Count, Dataplane, Originals, Tap, listeners,
    object::{JOIN, NETNS_PROGRAM, Objects},
};

impl Dataplane {
    /// Where the workload's own processes listen now, on one of `ports`.
    #[must_use]
    pub fn listening(&self, workload: WorkloadId, ports: &BTreeSet<u16>) -> BTreeSet<Endpoint> {
        self.attachments
            .get(&workload)
            .map(|attachment| listeners::listening(attachment, ports))
            .unwrap_or_default()
    }

    /// What keeps listening sockets of the workload that were open before from being found, if its
    /// plan needs any.
    #[must_use]
    pub fn blind_to(&self, workload: WorkloadId) -> Option<String> {
        let attachment = self.attachments.get(&workload)?;
        if attachment.listen_ports.is_empty() {
            return None;
        }
        let pid = listeners::unreadable(attachment)?;
        Some(format!(
            "looking for listening sockets of process {pid}: permission denied; what listened \
             before it was captured is not called until it listens anew; let the agent have \
             CAP_SYS_PTRACE and CAP_DAC_OVERRIDE"
        ))
    }

    /// What the kernel follows for this workload right now.
    #[must_use]
    pub fn word(&self, workload: WorkloadId) -> Word {
        self.maps.word(workload)
    }

    /// Decisions counted for a workload since it was attached, without zeros.
    #[must_use]
    pub fn counters(&self, workload: WorkloadId) -> Vec<Count> {
        self.counters.of(workload)
    }

    /// Decisions of all workloads that were detached, without zeros.
    #[must_use]
    pub fn counters_of_gone(&self) -> Vec<Count> {
        self.counters.of_gone()
    }

    /// How often each program is attached.
    #[must_use]
    pub fn attached(&self) -> BTreeMap<&'static str, usize> {
        let cgroups = self.attachments.values().map(|of| of.cgroups.len()).sum();
        let accelerated = self.attachments.values().filter(|of| of.is_accelerated);
        let accelerated = accelerated.map(|of| of.cgroups.len()).sum();
        Objects::cgroup_program_names()
            .map(|name| (name, cgroups))
            .chain([(NETNS_PROGRAM, self.attachments.len())])
            .chain((accelerated > 0).then_some((JOIN, accelerated)))
            .collect()
    }

    /// Entries and capacity of every table whose size follows the plans.
    #[must_use]
    pub fn usage(&self) -> Vec<(&'static str, usize, u32)> {
        self.maps.usage()
    }

    /// A second handle to the map of original destinations, for the relay's threads.
    ///
    /// # Errors
    /// If the map cannot be opened again.
    pub fn originals(&self) -> Result<Originals> {
        self.objects.originals()
    }

    /// The reader's end of what programs tell while somebody traces; there must be one only.
    ///
    /// # Errors
    /// If its maps cannot be opened.
    pub fn tap(&self) -> Result<Tap> {
        Tap::open(&self.objects)
    }

    /// Decisions that could not be told, as the ring was full.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn events_lost(&self) -> Result<u64> {
        self.counters.lost(Lost::EVENTS)
    }
}
