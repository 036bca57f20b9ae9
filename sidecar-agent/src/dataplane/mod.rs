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
mod found;
mod healing;
pub mod hooks;
mod interfaces;
mod listeners;
mod maps;
pub mod netns;
mod network;
mod object;
mod pins;
mod prepare;
pub mod probe;
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
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use sidecar_common::{
    Addr, Endpoint,
    keys::{PlanId, WorkloadId},
    values::{Identity, Lost, PlanHeader, refused_workload, refusing_plan},
};

use self::{
    attach::Attachment,
    contents::Keys,
    counters::Counters,
    found::Found,
    maps::{Digest, Maps, ToldWorkload},
    object::{NETNS_PROGRAM, Objects},
    pins::{Links, Lock, Set},
    usage::Counted,
};
use crate::compile::Plan;

pub use self::{
    counters::Count,
    maps::{Capacity, Originals},
    pins::is_bpffs,
    prepare::Prepared,
    tap::Tap,
    usage::Usage,
};
pub use sidecar_common::values::Word;

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
    plans: BTreeMap<Digest, InstalledPlan>,
    next_plan: PlanId,
    /// On the pins, for as long as this lives.
    lock: Lock,
}

struct InstalledPlan {
    id: PlanId,
    contents: Contents,
    /// Set while no workload uses it.
    unused_since: Option<Instant>,
}

/// What is known of an installed plan's entries.
enum Contents {
    /// They are a plan's that is in memory.
    Plan(Arc<Plan>),
    /// They were found in the maps. Whether they are what their digest says is not known.
    Found(Keys),
}

impl InstalledPlan {
    fn remove(self, maps: &mut Maps) {
        match self.contents {
            Contents::Plan(plan) => maps.remove_plan(self.id, &Keys::of(self.id, &plan)),
            Contents::Found(keys) => maps.remove_plan(self.id, &keys),
        }
    }
}

impl Dataplane {
    /// Loads the programs, and takes over what an earlier agent has left: see [`Prepared`].
    ///
    /// # Errors
    /// As [`Prepared::load`] and [`Prepared::take`].
    pub fn load(config: &Config) -> Result<Self> {
        Prepared::load(config)?.take()
    }

    /// Attaches to a workload. If it is attached already, from an earlier agent, it goes on with
    /// the plan it has; else it has none yet, and everything still passes.
    ///
    /// # Errors
    /// If all slots are in use, or the kernel refuses an attachment; what was attached before is as
    /// it was then.
    pub fn attach(&mut self, binding: &Binding<'_>) -> Result<WorkloadId> {
        let known = self.found.iter().find(|(_, found)| found.is(binding));
        let workload = match known {
            Some((&workload, _)) => workload,
            None => self.free_slot()?,
        };
        let found = self.found.remove(&workload);
        let is_new = found.is_none();
        if is_new {
            self.maps.store(workload, Word::default());
        }
        let mut attachment = Attachment::new(&self.objects, &self.maps, workload, binding, found)?;
        let introduced = attachment.introduce(&mut self.maps);
        // Also where that failed: `detach` undoes what was done.
        self.attachments.insert(workload, attachment);
        if let Err(error) = introduced {
            self.detach(workload);
            return Err(error);
        }
        Ok(workload)
    }

    /// Lets go what an earlier agent has left attached and nobody has claimed: what is wanted is
    /// known now, and it is not that.
    pub fn let_go_unclaimed(&mut self) {
        self.let_go(|_| true);
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

    /// Sets aside what [`refuse`](Self::refuse) takes, before the first plan of a workload is
    /// installed, and whenever it is another plan that may not fit.
    ///
    /// # Errors
    /// If the map refuses.
    pub fn reserve(&mut self, workload: WorkloadId, plan: &Plan) -> Result<()> {
        let attachment = attachment(&mut self.attachments, workload)?;
        let refusing = plan.header.refusing();
        if attachment.reserved != Some(refusing) {
            self.maps.reserve(workload, &refusing)?;
            attachment.reserved = Some(refusing);
        }
        Ok(())
    }

    /// There is no plan that could be in force: refuses everything new of the workload, unless
    /// capture is suspended. It takes no room that was not set aside before.
    ///
    /// # Errors
    /// If the workload is not attached, or nothing was set aside.
    pub fn refuse(&mut self, workload: WorkloadId) -> Result<()> {
        let attachment = attachment(&mut self.attachments, workload)?;
        if attachment.reserved.is_none() {
            bail!("nothing was set aside for workload slot {workload} to be refused by");
        }
        let suspended = attachment.word.is_suspended();
        attachment.word = Word::new(self.maps.set(), refusing_plan(workload)).suspended(suspended);
        self.maps.store(workload, attachment.word);
        self.retire_replaced(workload);
        Ok(())
    }

    /// Whether there is no plan for this workload, and everything new of it is refused.
    #[must_use]
    pub fn refuses(&self, workload: WorkloadId) -> bool {
        refused_workload(self.word(workload).plan()).is_some()
    }

    /// Writes a plan's entries into the maps, unless they are there. No workload follows it yet.
    ///
    /// # Errors
    /// If a map is full (named, with its capacity) or refuses; nothing of the plan stays then.
    pub fn install(&mut self, digest: &blake3::Hash, plan: &Arc<Plan>) -> Result<PlanId> {
        let digest = *digest.as_bytes();
        if let Some(installed) = self.plans.get_mut(&digest) {
            let is_right = match &installed.contents {
                Contents::Plan(_) => true,
                Contents::Found(keys) => self.maps.holds(installed.id, keys, plan),
            };
            if is_right {
                installed.contents = Contents::Plan(plan.clone());
                // Wanted again: the grace starts anew.
                installed.unused_since = installed.unused_since.map(|_| Instant::now());
                return Ok(installed.id);
            }
            tracing::warn!(
                plan = installed.id,
                "the entries of a plan that was found are not what its digest says"
            );
            disown(&mut self.plans, digest);
        }
        let id = self.next_plan;
        self.maps.insert_plan(id, &digest, plan)?;
        self.next_plan = self
            .next_plan
            .checked_add(1)
            .context("plan ids are used up")?;
        self.plans.insert(
            digest,
            InstalledPlan {
                id,
                contents: Contents::Plan(plan.clone()),
                unused_since: Some(Instant::now()),
            },
        );
        Ok(id)
    }

    /// Makes an installed plan the workload's: new connections follow it from the moment this
    /// returns, unless capture is suspended. Established ones are not touched.
    ///
    /// # Errors
    /// If a map is full or refuses; the old plan stays in force.
    pub fn switch(&mut self, workload: WorkloadId, id: PlanId, plan: &Plan) -> Result<()> {
        let attachment = attachment(&mut self.attachments, workload)?;
        attachment.prepare(&mut self.maps, id, plan)?;
        // Sockets that already listen must be known before the plan can hand them connections.
        self.maps
            .set_listen_interest(workload, &attachment.listen_ports, &plan.listen_ports)?;
        listeners::enter_existing(&mut self.maps, workload, attachment, &plan.listen_ports);
        let suspended = attachment.word.is_suspended();
        attachment.word = Word::new(self.maps.set(), id)
            .suspended(suspended)
            .open(plan.header.flags & PlanHeader::OPEN_UNKNOWN != 0);
        self.maps.store(workload, attachment.word);
        self.maps
            .drop_listen_interest(workload, &attachment.listen_ports, &plan.listen_ports);
        attachment.listen_ports.clone_from(&plan.listen_ports);
        attachment.follow(Some(plan.header));
        listeners::make_transparent(&self.maps, workload, attachment);
        self.retire_replaced(workload);
        Ok(())
    }

    /// Takes the workload's plan away: everything passes.
    ///
    /// # Errors
    /// If the workload is not attached.
    pub fn release(&mut self, workload: WorkloadId) -> Result<()> {
        let attachment = attachment(&mut self.attachments, workload)?;
        attachment.word = Word::default();
        self.maps.store(workload, attachment.word);
        attachment.follow(None);
        self.retire_plans();
        Ok(())
    }

    /// Has everything new of the workload pass, or not any more. Its plan stays known, and
    /// established connections are not touched.
    ///
    /// # Errors
    /// If the workload is not attached.
    pub fn suspend(&mut self, workload: WorkloadId, suspended: bool) -> Result<()> {
        let attachment = attachment(&mut self.attachments, workload)?;
        attachment.word = attachment.word.suspended(suspended);
        self.maps.store(workload, attachment.word);
        Ok(())
    }

    /// Detaches from a workload and forgets it. What programs (and the relay) have entered of its
    /// sockets and connections is removed by the next [`refresh`](Self::refresh), or before its slot
    /// is given to another workload.
    pub fn detach(&mut self, workload: WorkloadId) {
        self.maps.store(workload, Word::default());
        if let Some(mut attachment) = self.attachments.remove(&workload) {
            attachment.withdraw_identity(&self.maps);
            attachment.undo_setup();
            for links in [Some(&attachment.links), attachment.replaces.as_ref()] {
                remove_links(links);
            }
            self.forget(workload, &attachment.told());
        }
        self.retire_plans();
    }

    /// Looks again for what changes without telling us: addresses of the namespaces, listening
    /// sockets that a full map or a race has missed; and deletes plans that nobody uses, and what
    /// detached workloads have left.
    pub fn refresh(&mut self) {
        self.sweep();
        let mut sockets = self.maps.sockets();
        self.counted.sockets = sockets.values().map(BTreeSet::len).sum();
        for (&workload, attachment) in &mut self.attachments {
            if let Err(error) = attachment.refresh(&mut self.maps) {
                tracing::debug!(workload, "{error:#}");
            }
            // /proc is slow to read: only where a socket may be missing in the map.
            let known = sockets.remove(&workload).unwrap_or_default();
            let is_known = |port: &u16| known.iter().any(|endpoint| endpoint.port == *port);
            let missed = self.counters.missed(workload);
            if missed != attachment.missed || !attachment.listen_ports.iter().all(is_known) {
                attachment.missed = missed;
                let ports = attachment.listen_ports.clone();
                listeners::enter_existing(&mut self.maps, workload, attachment, &ports);
            }
            listeners::make_transparent(&self.maps, workload, attachment);
        }
        let now = Instant::now();
        let expired = |installed: &InstalledPlan| {
            installed
                .unused_since
                .is_some_and(|since| now - since > RETIRED_PLAN_GRACE)
        };
        for (_, installed) in self.plans.extract_if(.., |_, installed| expired(installed)) {
            installed.remove(&mut self.maps);
        }
        let expired = |(since, _): &mut (Instant, Links)| now - *since > RETIRED_PLAN_GRACE;
        for (_, links) in self.retired_links.extract_if(.., expired) {
            remove_links(Some(&links));
        }
        self.remove_old_sets();
    }

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

    /// The digest of the plan that the kernel has for this workload right now; `None`: none, or one
    /// of another set.
    #[must_use]
    pub fn in_force(&self, workload: WorkloadId) -> Option<blake3::Hash> {
        let word = self.word(workload);
        let is_it = |(_, installed): &(_, &InstalledPlan)| {
            word.set() == self.maps.set() && installed.id == word.plan()
        };
        let (digest, _) = self.plans.iter().find(is_it)?;
        Some(blake3::Hash::from_bytes(*digest))
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

    /// Lets go what the workload does not follow any more: links of another set, a plan.
    fn retire_replaced(&mut self, workload: WorkloadId) {
        let attachment = self.attachments.get_mut(&workload);
        if let Some(links) = attachment.and_then(|attachment| attachment.replaces.take()) {
            self.retired_links.push((Instant::now(), links));
        }
        self.retire_plans();
    }

    fn retire_plans(&mut self) {
        let of_found = self.found.values().map(|found| found.word);
        let in_use: BTreeSet<PlanId> = self
            .attachments
            .values()
            .map(|attachment| attachment.word)
            .chain(of_found)
            .filter(|word| word.set() == self.maps.set())
            .map(Word::plan)
            .collect();
        for installed in self.plans.values_mut() {
            if in_use.contains(&installed.id) {
                installed.unused_since = None;
            } else if installed.unused_since.is_none() {
                installed.unused_since = Some(Instant::now());
            }
        }
    }

    /// Removes what the maps have of workloads to which nothing is attached: an agent was ended in
    /// the middle of it.
    fn forget_unattached(&mut self) {
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
    fn sweep(&mut self) {
        let leaving = std::mem::take(&mut self.leaving);
        if !leaving.is_empty() {
            self.maps
                .forget_entered(|workload| leaving.contains(&workload));
        }
    }

    /// Detaches from workloads that an earlier agent has left.
    fn let_go(&mut self, which: impl Fn(&Found) -> bool) {
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
            remove_links(Some(&found.links));
            self.forget(workload, &found.told);
        }
        self.retire_plans();
        self.remove_old_sets();
    }

    /// Removes the sets that decide for nobody any more.
    fn remove_old_sets(&mut self) {
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

/// Keeps a plan that cannot be asked for by its digest only until no workload follows it.
fn disown(plans: &mut BTreeMap<Digest, InstalledPlan>, digest: Digest) {
    if let Some(installed) = plans.remove(&digest) {
        let mut nobodys = Digest::default();
        nobodys[..4].copy_from_slice(&installed.id.to_le_bytes());
        plans.insert(nobodys, installed);
    }
}

fn remove_links(links: Option<&Links>) {
    if let Some(Err(error)) = links.map(Links::remove) {
        tracing::warn!("{error:#}");
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
