//! Who is meant by the numbers that programs know: workloads by slot and plan.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sidecar_common::keys::{PlanId, WorkloadId};

use crate::{
    compile::{Plan, WorkloadPlan},
    model::ResourceRef,
    resolve::ResolvedWorkload,
};

/// Entries kept for a slot: its workload's last plans, and those of the workload before.
const KEPT: usize = 8;

/// What a workload's slot and plan mean; shared between the main loop, which knows, and whoever
/// reads events.
#[derive(Clone, Default)]
pub struct Directory(Arc<Mutex<Entries>>);

#[derive(Default)]
struct Entries {
    slots: BTreeMap<WorkloadId, VecDeque<Arc<Entry>>>,
    mesh: Option<ResourceRef>,
}

/// A workload that follows a plan.
pub struct Entry {
    plan_id: PlanId,
    /// From when on, in nanoseconds of `CLOCK_BOOTTIME`.
    since: u64,
    /// The workload.
    pub workload: ResolvedWorkload,
    /// Its plan.
    pub plan: Arc<Plan>,
    /// The `MeshConfig`, if there is one.
    pub mesh: Option<ResourceRef>,
}

impl Directory {
    /// The `MeshConfig` that what is announced from now on was compiled with.
    pub fn set_mesh(&self, mesh: Option<ResourceRef>) {
        self.lock().mesh = mesh;
    }

    /// The workload in a slot is about to follow a plan, or follows it and was written elsewhere.
    pub fn announce(&self, slot: WorkloadId, plan_id: PlanId, wanted: &WorkloadPlan) {
        let mut entries = self.lock();
        let mesh = entries.mesh.clone();
        let entries = entries.slots.entry(slot).or_default();
        let same = entries.iter().position(|of| {
            of.plan_id == plan_id && of.workload.resource.is_same(&wanted.workload.resource)
        });
        // Its events are those of the entry that it replaces.
        let since = match same {
            Some(index) => entries.remove(index).map_or(0, |of| of.since),
            None => boot_time(),
        };
        entries.push_front(Arc::new(Entry {
            plan_id,
            since,
            workload: wanted.workload.clone(),
            plan: Arc::clone(&wanted.plan),
            mesh,
        }));
        entries.truncate(KEPT);
    }

    /// Who was in a slot at a time and followed this plan.
    #[must_use]
    pub fn find(&self, slot: WorkloadId, plan_id: PlanId, time: u64) -> Option<Arc<Entry>> {
        let entries = self.lock();
        let mut entries = entries.slots.get(&slot)?.iter();
        entries
            .find(|of| of.plan_id == plan_id && of.since <= time)
            .cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `CLOCK_BOOTTIME`, in nanoseconds, as programs tell it.
#[must_use]
pub fn boot_time() -> u64 {
    nanoseconds(rustix::time::ClockId::Boottime)
}

/// A clock, in nanoseconds.
pub fn nanoseconds(clock: rustix::time::ClockId) -> u64 {
    let now = rustix::time::clock_gettime(clock);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let rest = u64::try_from(now.tv_nsec).unwrap_or_default();
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}
