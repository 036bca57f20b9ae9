//! The kernel side: the only module that knows bpf(2).
//!
//! [`Dataplane`] owns the loaded programs and maps. It attaches workloads, installs plans and
//! switches a workload from one plan to another with one store. It decides nothing.

mod attach;
pub mod cgroup;
mod counters;
mod listeners;
mod maps;
pub mod netns;
mod network;
mod object;
#[allow(
    unsafe_code,
    reason = "the one module with system calls that rustix does not have"
)]
mod sys;
mod tap;
mod usage;
mod userns;

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use sidecar_common::{
    Addr, Endpoint, Reason,
    decide::Direction,
    keys::{PlanId, WorkloadId},
    values::{Identity, Lost},
};

use self::{
    attach::Attachment,
    counters::Counters,
    maps::Maps,
    object::{NETNS_PROGRAM, Objects},
    usage::Counted,
};
use crate::compile::Plan;

pub use self::{
    counters::Count,
    maps::{Capacity, Originals},
    tap::Tap,
    usage::Usage,
};

/// How long a plan that no workload uses any more is kept: programs that read its id just before
/// the switch are done by then (they run for microseconds), and the relay may still ask for it.
const RETIRED_PLAN_GRACE: Duration = Duration::from_secs(2);

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

/// The loaded programs and maps, and what is attached.
pub struct Dataplane {
    maps: Maps,
    counters: Counters,
    counted: Counted,
    objects: Objects,
    attachments: BTreeMap<WorkloadId, Attachment>,
    plans: BTreeMap<String, InstalledPlan>,
    next_plan: PlanId,
}

struct InstalledPlan {
    id: PlanId,
    plan: Arc<Plan>,
    /// Set while no workload uses it.
    unused_since: Option<Instant>,
}

impl Dataplane {
    /// Loads the programs and creates the maps. Nothing is captured yet.
    ///
    /// # Errors
    /// If bpffs cannot be used, or the kernel refuses a map or a program; the error carries the
    /// verifier's log.
    pub fn load(config: &Config) -> Result<Self> {
        let objects = Objects::load(config)?;
        Ok(Self {
            maps: Maps::open(&objects, config.capacity)?,
            counters: Counters::open(&objects, &config.capacity)?,
            counted: Counted::open(&objects)?,
            objects,
            attachments: BTreeMap::new(),
            plans: BTreeMap::new(),
            next_plan: 1,
        })
    }

    /// Attaches to a workload. It has no plan yet, so everything still passes.
    ///
    /// # Errors
    /// If all slots are in use, or the kernel refuses an attachment; nothing stays attached then.
    pub fn attach(&mut self, binding: &Binding<'_>) -> Result<WorkloadId> {
        let workload = self.free_slot()?;
        self.maps.switch(workload, 0);
        let identity = Identity {
            workload,
            proxy_cgroup: binding.proxy_cgroup.map_or(0, |cgroup| cgroup.id),
            netns_cookie: binding.netns.cookie()?,
            ..Identity::default()
        };
        let mut attachment = Attachment::new(&self.objects, workload, identity, binding)?;
        let introduced = attachment.introduce(&mut self.maps);
        // Also where that failed: `detach` undoes what was done.
        self.attachments.insert(workload, attachment);
        if let Err(error) = introduced {
            self.detach(workload);
            return Err(error);
        }
        Ok(workload)
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

    /// Writes a plan's entries into the maps, unless they are there. No workload follows it yet.
    ///
    /// # Errors
    /// If a map is full (named, with its capacity) or refuses; nothing of the plan stays then.
    pub fn install(&mut self, digest: &str, plan: &Arc<Plan>) -> Result<PlanId> {
        if let Some(installed) = self.plans.get_mut(digest) {
            // Wanted again: the grace starts anew.
            installed.unused_since = installed.unused_since.map(|_| Instant::now());
            return Ok(installed.id);
        }
        let id = self.next_plan;
        self.maps.insert_plan(id, plan)?;
        self.next_plan = self
            .next_plan
            .checked_add(1)
            .context("plan ids are used up")?;
        self.plans.insert(
            digest.to_owned(),
            InstalledPlan {
                id,
                plan: plan.clone(),
                unused_since: Some(Instant::now()),
            },
        );
        Ok(id)
    }

    /// Makes an installed plan the workload's: new connections follow it from the moment this
    /// returns. Established ones are not touched.
    ///
    /// # Errors
    /// If a map is full or refuses; the old plan stays in force.
    pub fn switch(&mut self, workload: WorkloadId, id: PlanId, plan: &Plan) -> Result<()> {
        let attachment = attachment(&mut self.attachments, workload)?;
        attachment.prepare(&mut self.maps, plan)?;
        // Sockets that already listen must be known before the plan can hand them connections.
        self.maps
            .set_listen_interest(workload, &attachment.listen_ports, &plan.listen_ports)?;
        listeners::enter_existing(&mut self.maps, workload, attachment, &plan.listen_ports);
        self.maps.switch(workload, id);
        self.maps
            .drop_listen_interest(workload, &attachment.listen_ports, &plan.listen_ports);
        attachment.listen_ports.clone_from(&plan.listen_ports);
        attachment.plan = id;
        attachment.header = Some(plan.header);
        listeners::make_transparent(workload, attachment);
        self.retire_plans();
        Ok(())
    }

    /// Takes the workload's plan away: everything passes.
    ///
    /// # Errors
    /// If the workload is not attached.
    pub fn release(&mut self, workload: WorkloadId) -> Result<()> {
        let attachment = attachment(&mut self.attachments, workload)?;
        self.maps.switch(workload, 0);
        attachment.plan = 0;
        attachment.header = None;
        self.retire_plans();
        Ok(())
    }

    /// Detaches from a workload and forgets it.
    pub fn detach(&mut self, workload: WorkloadId) {
        self.maps.switch(workload, 0);
        if let Some(mut attachment) = self.attachments.remove(&workload) {
            attachment.withdraw_identity(&self.maps);
            attachment.withdraw_network(&mut self.maps);
            attachment.undo_setup();
            self.maps
                .drop_listen_interest(workload, &attachment.listen_ports, &BTreeSet::new());
            self.maps.forget_workload(workload);
            self.counters.retire(workload);
        }
        self.retire_plans();
    }

    /// Looks again for what changes without telling us: addresses of the namespaces, listening
    /// sockets that a full map or a race has missed; and deletes plans that nobody uses.
    pub fn refresh(&mut self) {
        let mut sockets = self.maps.sockets();
        self.counted.sockets = sockets.values().map(BTreeSet::len).sum();
        for (&workload, attachment) in &mut self.attachments {
            if let Err(error) = attachment.refresh(&mut self.maps) {
                tracing::debug!(workload, "{error:#}");
            }
            listeners::make_transparent(workload, attachment);
            // /proc is slow to read: only where a socket may be missing in the map.
            let known = sockets.remove(&workload).unwrap_or_default();
            let is_known = |port: &u16| known.iter().any(|endpoint| endpoint.port == *port);
            let missed = self.counters.one(
                workload,
                Direction::Inbound,
                sidecar_common::Path::Deny,
                Reason::TargetNotListening,
            );
            if missed != attachment.missed || !attachment.listen_ports.iter().all(is_known) {
                attachment.missed = missed;
                let ports = attachment.listen_ports.clone();
                listeners::enter_existing(&mut self.maps, workload, attachment, &ports);
            }
        }
        let now = Instant::now();
        let expired = |installed: &InstalledPlan| {
            installed
                .unused_since
                .is_some_and(|since| now - since > RETIRED_PLAN_GRACE)
        };
        for (_, installed) in self.plans.extract_if(.., |_, installed| expired(installed)) {
            self.maps.remove_plan(installed.id, &installed.plan);
        }
    }

    /// Where the workload's own processes listen now, on one of `ports`.
    #[must_use]
    pub fn listening(&self, workload: WorkloadId, ports: &BTreeSet<u16>) -> BTreeSet<Endpoint> {
        self.attachments
            .get(&workload)
            .map(|attachment| listeners::listening(attachment, ports))
            .unwrap_or_default()
    }

    /// The plan id that the kernel follows for this workload right now; 0: none.
    #[must_use]
    pub fn current_plan(&self, workload: WorkloadId) -> PlanId {
        self.maps.current_plan(workload)
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
        Objects::cgroup_program_names()
            .map(|name| (name, cgroups))
            .chain([(NETNS_PROGRAM, self.attachments.len())])
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

    fn free_slot(&self) -> Result<WorkloadId> {
        let slots = self.maps.capacity().workloads;
        (1..slots)
            .find(|slot| !self.attachments.contains_key(slot))
            .with_context(|| {
                format!("all {slots} workload slots are in use; raise --max-workloads")
            })
    }

    fn retire_plans(&mut self) {
        let in_use: BTreeSet<PlanId> = self
            .attachments
            .values()
            .map(|attachment| attachment.plan)
            .collect();
        for installed in self.plans.values_mut() {
            if in_use.contains(&installed.id) {
                installed.unused_since = None;
            } else if installed.unused_since.is_none() {
                installed.unused_since = Some(Instant::now());
            }
        }
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        for workload in self.attachments.keys().copied().collect::<Vec<_>>() {
            self.detach(workload);
        }
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
