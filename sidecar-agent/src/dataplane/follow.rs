//! What a workload follows, and how it is switched: with one store.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use anyhow::{Result, bail};
use sidecar_common::{
    keys::{PlanId, WorkloadId},
    values::{PlanHeader, Word, refused_workload, refusing_plan},
};

use super::{Dataplane, attachment, listeners};
use crate::compile::Plan;

impl Dataplane {
    /// Writes a plan's entries into the maps, unless they are there. No workload follows it yet.
    ///
    /// # Errors
    /// If a map is full (named, with its capacity) or refuses; nothing of the plan stays then.
    pub fn install(&mut self, digest: &blake3::Hash, plan: &Arc<Plan>) -> Result<PlanId> {
        self.plans.install(&mut self.maps, digest, plan)
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
        let accelerate = plan.header.flags & PlanHeader::ACCELERATE != 0;
        // Capture does not depend on it.
        if let Err(error) = attachment.accelerate(&self.objects, accelerate) {
            tracing::warn!(
                slot = workload,
                "until its plan changes, or the agent is started again, it stays as it was whether \
                 connections to the proxy are accelerated; they are captured all the same: {error:#}"
            );
        }
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

    /// The digest of the plan that the kernel has for this workload right now; `None`: none, or one
    /// of another set.
    #[must_use]
    pub fn in_force(&self, workload: WorkloadId) -> Option<blake3::Hash> {
        let word = self.word(workload);
        (word.set() == self.maps.set())
            .then(|| self.plans.digest(word.plan()))
            .flatten()
    }

    /// Lets go what the workload does not follow any more: links of another set, a plan.
    fn retire_replaced(&mut self, workload: WorkloadId) {
        let attachment = self.attachments.get_mut(&workload);
        if let Some(links) = attachment.and_then(|attachment| attachment.replaces.take()) {
            self.retired_links.push((Instant::now(), links));
        }
        self.retire_plans();
    }

    /// Begins the grace of plans that no workload follows any more.
    pub(super) fn retire_plans(&mut self) {
        let of_found = self.found.values().map(|found| found.word);
        let in_use: BTreeSet<PlanId> = self
            .attachments
            .values()
            .map(|attachment| attachment.word)
            .chain(of_found)
            .filter(|word| word.set() == self.maps.set())
            .map(Word::plan)
            .collect();
        self.plans.retire(&in_use);
    }
}
