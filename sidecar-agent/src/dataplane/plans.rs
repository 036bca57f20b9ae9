//! Which plans the maps have: written once for all workloads that follow them, kept a moment longer
//! than they are used.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use sidecar_common::keys::PlanId;

use super::{
    contents::Keys,
    maps::{Digest, Maps},
};
use crate::compile::Plan;

/// How long a plan that no workload uses any more is kept: programs that read its id just before
/// the switch are done by then (they run for microseconds), and the relay may still ask for it.
pub const RETIRED_PLAN_GRACE: Duration = Duration::from_secs(2);

/// The installed plans.
pub struct Plans {
    installed: BTreeMap<Digest, Installed>,
    next: PlanId,
}

struct Installed {
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

impl Installed {
    fn is_expired(&self, grace: Duration) -> bool {
        self.unused_since
            .is_some_and(|since| since.elapsed() > grace)
    }

    fn remove(self, maps: &mut Maps) {
        match self.contents {
            Contents::Plan(plan) => maps.remove_plan(self.id, &Keys::of(self.id, &plan)),
            Contents::Found(keys) => maps.remove_plan(self.id, &keys),
        }
    }
}

impl Plans {
    /// The complete plans in the maps. What is left of others is removed.
    pub fn find(maps: &mut Maps) -> Self {
        let mut plans = Self {
            installed: BTreeMap::new(),
            next: 1,
        };
        for (id, (digest, keys)) in maps.found_plans() {
            plans.next = plans.next.max(id.saturating_add(1));
            maps.adopt_plan(&keys);
            let found = Installed {
                id,
                contents: Contents::Found(keys),
                unused_since: None,
            };
            match digest {
                Some(digest) => {
                    plans.disown(digest);
                    plans.installed.insert(digest, found);
                }
                None => found.remove(maps),
            }
        }
        plans
    }

    /// Writes a plan's entries into the maps, unless they are there.
    pub fn install(
        &mut self,
        maps: &mut Maps,
        digest: &blake3::Hash,
        plan: &Arc<Plan>,
    ) -> Result<PlanId> {
        let digest = *digest.as_bytes();
        if let Some(installed) = self.installed.get_mut(&digest) {
            let is_right = match &installed.contents {
                Contents::Plan(_) => true,
                Contents::Found(keys) => maps.holds(installed.id, keys, plan),
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
            self.disown(digest);
        }
        let id = self.next;
        maps.insert_plan(id, &digest, plan)?;
        self.next = id.checked_add(1).context("plan ids are used up")?;
        self.installed.insert(
            digest,
            Installed {
                id,
                contents: Contents::Plan(plan.clone()),
                unused_since: Some(Instant::now()),
            },
        );
        Ok(id)
    }

    /// The digest of the plan with this id.
    pub fn digest(&self, id: PlanId) -> Option<blake3::Hash> {
        let (digest, _) = self.installed.iter().find(|(_, plan)| plan.id == id)?;
        Some(blake3::Hash::from_bytes(*digest))
    }

    /// Begins the grace of those that no workload uses any more.
    pub fn retire(&mut self, in_use: &BTreeSet<PlanId>) {
        for installed in self.installed.values_mut() {
            if in_use.contains(&installed.id) {
                installed.unused_since = None;
            } else if installed.unused_since.is_none() {
                installed.unused_since = Some(Instant::now());
            }
        }
    }

    /// Removes those whose grace is over.
    pub fn remove_expired(&mut self, maps: &mut Maps, grace: Duration) {
        let is_expired = |_: &Digest, plan: &mut Installed| plan.is_expired(grace);
        for (_, plan) in self.installed.extract_if(.., is_expired) {
            plan.remove(maps);
        }
    }

    /// Keeps a plan that cannot be asked for by its digest only until no workload follows it.
    fn disown(&mut self, digest: Digest) {
        if let Some(installed) = self.installed.remove(&digest) {
            let mut nobodys = Digest::default();
            nobodys[..4].copy_from_slice(&installed.id.to_le_bytes());
            self.installed.insert(nobodys, installed);
        }
    }
}
