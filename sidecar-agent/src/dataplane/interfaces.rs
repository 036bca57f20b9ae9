//! Which interfaces of a workload's namespace are unlike others, by each plan that a connection may
//! follow right now: the one in force, the one that is about to be, and those just retired.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use sidecar_common::keys::{PlanId, WorkloadId, WorkloadInterface};

use crate::compile::plan::interface_flags;

/// What plans of one workload say of interfaces.
#[derive(Default)]
pub struct Interfaces {
    in_force: PlanId,
    plans: BTreeMap<PlanId, Declared>,
    /// What an earlier agent told the kernel by the plan in force then, until that plan is known, or
    /// has not been in force for a while.
    found: BTreeMap<WorkloadInterface, u32>,
    found_last: Option<Instant>,
}

/// What one plan says, and when it was last in force, or about to be.
struct Declared {
    /// As [`Plan::interfaces`](crate::compile::Plan::interfaces).
    names: BTreeMap<String, u32>,
    last: Instant,
}

impl Interfaces {
    /// Of a workload that follows a plan of an earlier agent's, which told the kernel this.
    pub fn found(plan: PlanId, mut found: BTreeMap<WorkloadInterface, u32>) -> Self {
        found.retain(|key, _| key.plan == plan);
        Self {
            in_force: plan,
            plans: BTreeMap::new(),
            found,
            found_last: None,
        }
    }

    /// A plan is about to be in force. Returns whether what is known has changed.
    pub fn announce(&mut self, plan: PlanId, names: &BTreeMap<String, u32>) -> bool {
        let found = self.found.len();
        self.found.retain(|key, _| key.plan != plan);
        let is_known_now = self.found.len() != found;
        if names.is_empty() {
            return is_known_now;
        }
        let declared = Declared {
            names: names.clone(),
            last: Instant::now(),
        };
        self.plans.insert(plan, declared).is_none() || is_known_now
    }

    /// A plan is in force from now on; 0: none.
    pub fn follow(&mut self, plan: PlanId) {
        if let Some(left) = self.plans.get_mut(&self.in_force) {
            left.last = Instant::now();
        }
        if self.in_force != plan {
            self.found_last = Some(Instant::now());
        }
        self.in_force = plan;
    }

    /// Forgets plans that have not been in force for longer than `grace`. Returns whether there
    /// were such.
    pub fn expire(&mut self, grace: Duration) -> bool {
        let before = self.plans.len();
        let in_force = self.in_force;
        self.plans
            .retain(|plan, declared| *plan == in_force || declared.last.elapsed() <= grace);
        let found_expired = self.found_last.is_some_and(|last| last.elapsed() > grace)
            && !std::mem::take(&mut self.found).is_empty();
        self.plans.len() != before || found_expired
    }

    /// Whether no plan says anything of interfaces.
    pub fn is_empty(&self) -> bool {
        self.plans.is_empty() && self.found.is_empty()
    }

    /// The entries of map `INTERFACES`, where these interfaces exist (index by name).
    pub fn entries(
        &self,
        workload: WorkloadId,
        existing: &BTreeMap<String, u32>,
    ) -> BTreeMap<WorkloadInterface, u32> {
        let plans = self.plans.iter();
        let all = plans.flat_map(|(&plan, declared)| {
            existing.iter().map(move |(name, &index)| {
                let key = WorkloadInterface {
                    workload,
                    plan,
                    index,
                };
                (key, interface_flags(&declared.names, name))
            })
        });
        let found = self.found.iter().map(|(key, flags)| (*key, *flags));
        all.filter(|(_, flags)| *flags != 0).chain(found).collect()
    }
}
