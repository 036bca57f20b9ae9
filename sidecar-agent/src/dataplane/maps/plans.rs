//! A plan's way into the maps, and out of them again.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use aya::maps::lpm_trie::Key;
use sidecar_common::{
    keys::{PlanId, PrefixKey, WorkloadId},
    values::{PlanHeader, refused_workload, refusing_plan},
};

use super::{Digest, Maps};
use crate::{
    compile::Plan,
    dataplane::contents::{self, Keys, by_plan},
};

impl Maps {
    /// The header of a plan.
    pub fn header(&self, plan: PlanId) -> Option<PlanHeader> {
        self.plans.get(&plan, 0).ok()
    }

    /// Has the plan of a workload that refuses everything be there.
    pub fn reserve(&mut self, workload: WorkloadId, header: &PlanHeader) -> Result<()> {
        let written = self.plans.insert(refusing_plan(workload), header, 0);
        self.failures
            .note("PLANS", written)
            .context("setting aside what refuses everything")
    }

    /// Every plan that has entries, with its digest if it is complete; not those that refuse
    /// everything.
    pub fn found_plans(&self) -> BTreeMap<PlanId, (Option<Digest>, Keys)> {
        let mut found = BTreeMap::new();
        by_plan(
            &mut found,
            self.outbound.keys().flatten(),
            |key| key.plan,
            |keys| &mut keys.outbound,
        );
        by_plan(
            &mut found,
            self.inbound.keys().flatten(),
            |key| key.plan,
            |keys| &mut keys.inbound,
        );
        let prefix_plan = |key: &Key<PrefixKey>| key.data().plan;
        by_plan(
            &mut found,
            self.prefixes.keys().flatten(),
            prefix_plan,
            |keys| &mut keys.prefixes,
        );
        by_plan(
            &mut found,
            self.backends.keys().flatten(),
            |key| key.plan,
            |keys| &mut keys.backends,
        );
        by_plan(
            &mut found,
            self.owners.keys().flatten(),
            |key| key.plan,
            |keys| &mut keys.owners,
        );
        let plans = self.plans.keys().chain(self.digests.keys()).flatten();
        for plan in plans.filter(|plan| refused_workload(*plan).is_none()) {
            found.entry(plan).or_default();
        }
        let complete = |plan: &PlanId| {
            self.header(*plan)?;
            self.digests.get(plan, 0).ok()
        };
        found
            .into_iter()
            .map(|(plan, keys)| (plan, (complete(&plan), keys)))
            .collect()
    }

    /// Takes entries of an earlier agent's into account.
    pub fn adopt_plan(&mut self, keys: &Keys) {
        self.used = self.used.combine(keys.size(), |used, more| used + more);
    }

    /// Whether the entries under this id, which has these keys, are those of `plan`.
    pub fn holds(&self, id: PlanId, keys: &Keys, plan: &Plan) -> bool {
        fn same<K, V: PartialEq>(
            mut entries: impl Iterator<Item = (K, V)>,
            get: impl Fn(&K) -> Option<V>,
        ) -> bool {
            entries.all(|(key, value)| get(&key) == Some(value))
        }
        self.header(id) == Some(plan.header)
            && keys.size() == Keys::of(id, plan).size()
            && same(contents::outbound(id, plan), |key| {
                self.outbound.get(key, 0).ok()
            })
            && same(contents::inbound(id, plan), |key| {
                self.inbound.get(key, 0).ok()
            })
            && same(contents::prefixes(id, plan), |key| {
                self.prefixes.get(key, 0).ok()
            })
            && same(contents::backends(id, plan), |key| {
                self.backends.get(key, 0).ok()
            })
            && contents::owners(id, plan).all(|key| self.owners.get(&key, 0).is_ok())
    }

    /// Writes all entries of a plan under a new id. On failure none of them stays.
    pub fn insert_plan(&mut self, id: PlanId, digest: &Digest, plan: &Plan) -> Result<()> {
        let keys = Keys::of(id, plan);
        let after = self.used.combine(keys.size(), |used, more| used + more);
        for (map, entries, capacity) in after.tables(&self.capacity) {
            if entries > capacity as usize {
                self.failures.count(map);
                bail!(
                    "map {map} is full: {entries} entries wanted, capacity {capacity}; raise \
                     --max-rules (or --max-plans), or narrow the egress hosts"
                );
            }
        }
        self.used = after;
        let result = self.write_plan(id, digest, plan);
        if result.is_err() {
            self.remove_plan(id, &keys);
        }
        result
    }

    fn write_plan(&mut self, id: PlanId, digest: &Digest, plan: &Plan) -> Result<()> {
        let failures = &self.failures;
        for (key, rule) in contents::outbound(id, plan) {
            failures.note("OUTBOUND", self.outbound.insert(key, rule, 0))?;
        }
        for (key, rule) in contents::prefixes(id, plan) {
            failures.note("PREFIXES", self.prefixes.insert(&key, rule, 0))?;
        }
        for key in contents::owners(id, plan) {
            failures.note("OWNERS", self.owners.insert(key, 1, 0))?;
        }
        for (key, rule) in contents::inbound(id, plan) {
            failures.note("INBOUND", self.inbound.insert(key, rule, 0))?;
        }
        for (key, backend) in contents::backends(id, plan) {
            failures.note("BACKENDS", self.backends.insert(key, backend, 0))?;
        }
        failures.note("DIGESTS", self.digests.insert(id, digest, 0))?;
        // Last: a plan with a header is complete.
        failures.note("PLANS", self.plans.insert(id, plan.header, 0))
    }

    /// Removes all entries of a plan. Entries that are not there do not matter.
    pub fn remove_plan(&mut self, id: PlanId, keys: &Keys) {
        let _ = self.plans.remove(&id);
        let _ = self.digests.remove(&id);
        for key in &keys.outbound {
            let _ = self.outbound.remove(key);
        }
        for key in &keys.prefixes {
            let _ = self.prefixes.remove(key);
        }
        for key in &keys.owners {
            let _ = self.owners.remove(key);
        }
        for key in &keys.inbound {
            let _ = self.inbound.remove(key);
        }
        for key in &keys.backends {
            let _ = self.backends.remove(key);
        }
        self.used = self.used.combine(keys.size(), usize::saturating_sub);
    }
}
