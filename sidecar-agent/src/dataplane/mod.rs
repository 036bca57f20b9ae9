//! The kernel side: the only module that knows bpf(2).
//!
//! [`Dataplane`] owns the loaded programs and maps. It attaches workloads, installs plans and
//! switches a workload from one plan to another with one store. It decides nothing.

pub mod arrival;
mod attach;
pub mod attempt;
pub mod cgroup;
pub mod compare;
mod contents;
mod counters;
pub mod dump;
mod follow;
mod found;
mod healing;
pub mod hooks;
mod interfaces;
mod kernel;
mod leaving;
mod listeners;
mod maps;
pub mod netns;
mod network;
mod object;
mod pins;
mod plans;
mod prepare;
pub mod probe;
mod refresh;
mod report;
pub mod scratch;
mod slots;
#[allow(
    unsafe_code,
    reason = "the one module with system calls that rustix does not have"
)]
mod sys;
mod tap;
pub mod uninstall;
mod usage;
mod userns;

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use sidecar_common::{Addr, keys::WorkloadId};

use self::{
    attach::Attachment,
    counters::Counters,
    found::Found,
    maps::Maps,
    object::Objects,
    pins::{Links, Lock, Set},
    plans::Plans,
    usage::Counted,
};

use crate::limits::{Exhausted, check_descriptors};

pub use self::{
    counters::Count,
    kernel::{features as kernel_features, socket_offsets},
    maps::{Capacity, Originals},
    pins::is_bpffs,
    prepare::Prepared,
    refresh::Refresh,
    tap::Tap,
    usage::Usage,
};
pub use sidecar_common::values::Word;

/// Where and how large.
#[derive(Clone, Debug)]
pub struct Config {
    /// A directory of this agent's own below a bpffs mount.
    pub pin_dir: PathBuf,
    /// Map capacities.
    pub capacity: Capacity,
}

/// What the kernel has to know of a workload to attach to it.
#[derive(Debug)]
pub struct Binding<'a> {
    /// The workload's cgroup, opened.
    pub cgroup: &'a cgroup::Cgroup,
    /// The proxy's own cgroup, if it has one apart.
    pub proxy_cgroup: Option<&'a cgroup::Cgroup>,
    /// The workload's network namespace.
    pub netns: &'a netns::Netns,
}

/// The relay's listeners on the loopback addresses of a workload's namespace, with their ports.
#[derive(Clone, Copy, Debug)]
pub struct RelaySockets<'a> {
    /// On 127.0.0.1.
    pub v4: Option<(BorrowedFd<'a>, u16)>,
    /// On `::1`; `None` where the namespace has no IPv6.
    pub v6: Option<(BorrowedFd<'a>, u16)>,
}

/// The loaded programs and maps, and what is attached. Dropping it detaches nothing: what is pinned
/// goes on without the agent, and is found by the next one.
pub struct Dataplane {
    maps: Maps,
    counters: Counters,
    counted: Counted,
    objects: Objects,
    attachments: BTreeMap<WorkloadId, Attachment>,
    /// What an earlier agent has left attached, and nobody has claimed yet.
    found: BTreeMap<WorkloadId, Found>,
    /// Sets that decide for some workloads until this one does.
    old_sets: Vec<Set>,
    /// Detached workloads of which sockets and connections may still be in the maps. Their slots are
    /// not given to others before that is removed.
    leaving: BTreeSet<WorkloadId>,
    /// Links of old sets that decide no more. What they decided before may still be on its way.
    retired_links: Vec<(Instant, Links)>,
    plans: Plans,
    /// How long what no workload follows any more is kept.
    grace: Duration,
    /// On the pins, for as long as this lives.
    lock: Lock,
}

impl Dataplane {
    /// Loads the programs, and takes over what an earlier agent has left: see [`Prepared`].
    ///
    /// # Errors
    /// As [`Prepared::load`] and [`Prepared::take`].
    pub fn load(config: &Config) -> Result<Self> {
        Prepared::load(config)?.take()
    }

    /// Whether there are the descriptors that attaching takes. To know it before costs little, and
    /// what cannot be opened for want of them is not taken for gone.
    ///
    /// # Errors
    /// If not: why.
    pub fn check_descriptors(&self) -> Result<(), Exhausted> {
        check_descriptors(object::descriptors_to_attach())
    }

    /// Attaches to a workload. If it is attached already, from an earlier agent, it goes on with
    /// the plan it has; else it has none yet, and everything still passes.
    ///
    /// # Errors
    /// If all slots are in use, or the kernel refuses an attachment; what was attached before is as
    /// it was then.
    pub fn attach(&mut self, binding: &Binding<'_>) -> Result<WorkloadId> {
        self.check_descriptors()
            .with_context(|| format!("attaching to cgroup {}", binding.cgroup.path.display()))?;
        let known = self.found.iter().find(|(_, found)| found.is(binding));
        let workload = match known {
            Some((&workload, _)) => workload,
            None => self.free_slot()?,
        };
        let found = self.found.get(&workload);
        if found.is_none() {
            self.maps.store(workload, Word::default());
        }
        // What was found stays so where this fails: it still decides.
        let mut attachment = Attachment::new(&self.objects, &self.maps, workload, binding, found)?;
        self.found.remove(&workload);
        let introduced = attachment.introduce(&mut self.maps, self.grace);
        // Also where that failed: `detach` undoes what was done.
        self.attachments.insert(workload, attachment);
        if let Err(error) = introduced {
            self.detach(workload);
            return Err(error);
        }
        Ok(workload)
    }

    /// Has what no workload follows any more be kept for so long, instead of two seconds: for tests
    /// that look at it, on machines that take their time.
    pub fn keep_retired(&mut self, grace: Duration) {
        self.grace = grace;
    }

    /// Tells the kernel where the relay of this workload listens.
    ///
    /// # Errors
    /// If a map refuses.
    pub fn set_relay(&mut self, workload: WorkloadId, relay: &RelaySockets<'_>) -> Result<()> {
        let attachment = attachment(&mut self.attachments, workload)?;
        if let Some((socket, port)) = relay.v4 {
            self.maps.enter_relay(workload, Addr::ANY_V4, socket)?;
            attachment.identity.relay_port_v4 = port;
        }
        if let Some((socket, port)) = relay.v6 {
            self.maps.enter_relay(workload, Addr::ANY, socket)?;
            attachment.identity.relay_port_v6 = port;
        }
        attachment.publish_identity(&self.maps)
    }

    /// Tells the kernel which cgroup within the workload's own is now its proxy's; `None`: none.
    ///
    /// # Errors
    /// If the workload is not attached, or a map refuses.
    pub fn set_proxy_cgroup(
        &mut self,
        workload: WorkloadId,
        proxy: Option<&cgroup::Cgroup>,
    ) -> Result<()> {
        let attachment = attachment(&mut self.attachments, workload)?;
        attachment.identity.proxy_cgroup = proxy.map_or(0, |cgroup| cgroup.id);
        attachment.publish_identity(&self.maps)
    }

    fn free_slot(&mut self) -> Result<WorkloadId> {
        self.sweep();
        let slots = self.maps.capacity().workloads;
        let is_free = |slot: &WorkloadId| {
            !self.attachments.contains_key(slot) && !self.found.contains_key(slot)
        };
        (1..slots).find(is_free).with_context(|| {
            format!("all {slots} workload slots are in use; raise --max-workloads")
        })
    }
}

fn attachment(
    attachments: &mut BTreeMap<WorkloadId, Attachment>,
    workload: WorkloadId,
) -> Result<&mut Attachment> {
    attachments
        .get_mut(&workload)
        .with_context(|| format!("workload slot {workload} is not attached"))
}

/// The directory for an agent's pins below the bpffs mount at `bpffs`.
#[must_use]
pub fn default_pin_dir(bpffs: &Path) -> PathBuf {
    bpffs.join("sidecar-agent")
}
