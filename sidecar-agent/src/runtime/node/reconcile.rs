//! Wanted and actual, brought together workload by workload.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sidecar_common::keys::WorkloadId;

use super::{Live, Node, Place, Workload};
use crate::{
    backoff::Backoff,
    compile::WorkloadPlan,
    limits::Exhausted,
    model::failure::{Action, Case},
    observe::listeners::{self, Listeners, Paths},
    resolve::workload::ResolvedWorkload,
    runtime::relays::WorkloadRelay,
};

/// For so long workloads are attended to, one after the other, before whoever asks.
const TURN: Duration = Duration::from_millis(2);

impl Node {
    /// Has every workload be brought to what is wanted of it, by [`advance`](Self::advance).
    pub(super) fn reconcile(&mut self) {
        let names: Vec<String> = self.workloads.keys().cloned().collect();
        // First all that leave a place, then those that come: a cgroup may change hands.
        for name in &names {
            if self.has_to_leave(name)
                && let Some(live) = self.workloads.get_mut(name).and_then(|of| of.live.take())
            {
                self.detach(name, live);
            }
        }
        // Somebody waits for those whose plan is another.
        let (changed, same): (Vec<String>, Vec<String>) = names.into_iter().partition(|name| {
            let workload = self.workloads.get(name);
            workload.is_some_and(|of| !of.follows_what_is_wanted())
        });
        self.todo = changed.into_iter().chain(same).collect();
    }

    /// Whether every workload has had its turn.
    pub fn is_settled(&self) -> bool {
        self.todo.is_empty()
    }

    /// Whether there is anything to [`advance`](Self::advance).
    pub fn has_work(&self) -> bool {
        !self.is_settled() || self.refresh.is_some() || !self.uninspected.is_empty()
    }

    /// Brings the next workloads to what is wanted of them, then looks after others: one at least, and
    /// more for as long as whoever asks may wait.
    pub fn advance(&mut self) {
        let started = Instant::now();
        while self.has_work() && started.elapsed() < TURN {
            self.step();
        }
    }

    fn step(&mut self) {
        if let Some(name) = self.todo.pop_front() {
            // Taken out while it is worked on: the rest of the node is needed for that.
            if let Some(mut workload) = self.workloads.remove(&name) {
                self.bring(&name, &mut workload);
                self.workloads.insert(name, workload);
            }
        } else if let Some(refresh) = &mut self.refresh {
            if !self.dataplane.refresh_next(refresh) {
                self.refresh = None;
                self.heal();
            }
        } else if let Some(name) = self.uninspected.pop_front() {
            self.inspect(&name);
        }
    }

    fn bring(&mut self, name: &str, workload: &mut Workload) {
        let is_waiting = workload.live.is_none() && !workload.retry.left(Instant::now()).is_zero();
        if is_waiting {
            return;
        }
        let before = workload.problem.take();
        workload.problem = match self.reconcile_one(name, workload, before.is_some()) {
            Ok(problems) if problems.is_empty() => None,
            Ok(problems) => Some(problems.join("; ")),
            Err(error) => Some(format!("{:#}", Exhausted::explain(error))),
        };
        if workload.problem != before {
            if let Some(problem) = &workload.problem {
                tracing::warn!(workload = name, "{problem}");
            } else {
                tracing::info!(workload = name, "in order again");
            }
        }
    }

    /// Whether a workload cannot stay attached where it is. As long as it is not known where else
    /// it is, it stays, with its last good plan, unless the place is gone or another's.
    fn has_to_leave(&self, name: &str) -> bool {
        let Some(workload) = self.workloads.get(name) else {
            return false;
        };
        let (Some(live), wanted) = (&workload.live, &workload.wanted.workload) else {
            return false;
        };
        let root = &self.cgroup_root;
        let is_anothers = || {
            self.workloads.iter().any(|(other, workload)| {
                other != name
                    && live.place.cgroup.path == root.join(&workload.wanted.workload.cgroup)
            })
        };
        !live.place.is_current(root, wanted)
            && !live.place.can_follow(root, wanted)
            && (!live.place.is_alive() || is_anothers() || Place::find(root, wanted).is_ok())
    }

    /// Brings one workload to its plan; `again`: something was wrong the last time. Problems that
    /// leave the plan in force are returned.
    fn reconcile_one(
        &mut self,
        name: &str,
        workload: &mut Workload,
        again: bool,
    ) -> Result<Vec<String>> {
        let wanted = &workload.wanted.workload;
        let mut again = again;
        let live = match &mut workload.live {
            Some(live) => {
                if !live.place.is_current(&self.cgroup_root, wanted) {
                    // See `has_to_leave`: it could not be found, or need not leave.
                    let place = Place::find(&self.cgroup_root, wanted)
                        .context("the last good plan stays in force where it was")?;
                    if live.place.can_follow(&self.cgroup_root, wanted) {
                        self.follow(live, place)?;
                        again = true;
                    }
                }
                live
            }
            none => none.insert(self.attach(name, wanted, &mut workload.retry)?),
        };
        let digest = workload.wanted.digest;
        let capture = self.toggles.wanted(wanted).wanted;
        if live.digest == Some(digest) && !again && !live.adopted {
            self.dataplane.suspend(live.id, !capture)?;
            return Ok(Vec::new());
        }
        let has_last_good = live.digest.is_some() || live.adopted;
        let problems = match self.bring_to(name, live, &digest, &workload.wanted, capture) {
            Ok(problems) => problems,
            Err(error) if has_last_good => {
                return Err(error.context("the last good plan stays in force"));
            }
            Err(error) => {
                let action = wanted.failure.of(Case::MapFull);
                return Err(error.context(self.without_plan(live.id, action)));
            }
        };
        live.adopted = false;
        if live.digest != Some(digest) {
            tracing::info!(workload = name, plan = %digest, "plan in force");
            live.digest = Some(digest);
        }
        Ok(problems)
    }

    /// Containers of a pod have restarted: what is attached stays so.
    fn follow(&mut self, live: &mut Live, place: Place) -> Result<()> {
        let proxy = place.binding().proxy_cgroup;
        self.dataplane.set_proxy_cgroup(live.id, proxy)?;
        if !place.has_root_of(&live.place)
            && let Some(relay) = live.relay.take()
        {
            // What it led to, and where its unix sockets were, is gone with the container.
            relay.stop(&self.engine);
        }
        live.place = place;
        Ok(())
    }

    /// No plan of the workload can be in force: does what its failure policy says, and says so.
    fn without_plan(&mut self, id: WorkloadId, action: Action) -> String {
        let (done, outcome) = match action {
            Action::Closed => (self.dataplane.refuse(id), "everything is refused"),
            Action::Open => (self.dataplane.release(id), "nothing is captured"),
        };
        match done {
            Ok(()) => format!("{outcome} (failure policy map-full={})", action.name()),
            Err(error) => format!("nothing is captured: {error:#}"),
        }
    }

    fn bring_to(
        &mut self,
        name: &str,
        live: &mut Live,
        digest: &blake3::Hash,
        wanted: &WorkloadPlan,
        capture: bool,
    ) -> Result<Vec<String>> {
        let plan = &wanted.plan;
        self.dataplane.suspend(live.id, !capture)?;
        self.dataplane.reserve(live.id, plan)?;
        let id = self.dataplane.install(digest, plan)?;
        self.directory.announce(live.id, id, wanted);
        let paths = Paths::of(plan);
        if live.relay.is_none() && paths.relayed().next().is_some() {
            live.relay = Some(WorkloadRelay::start(
                &mut self.dataplane,
                &self.originals,
                live.id,
                &live.place.netns,
                live.place.root.clone(),
                self.inherited.remove(name).unwrap_or_default(),
            )?);
        }
        let mut problems = match &mut live.relay {
            Some(relay) => relay.prepare(&self.engine, id, plan),
            None => Vec::new(),
        };
        self.dataplane.switch(live.id, id, plan)?;
        problems.extend(self.dataplane.blind_to(live.id));
        if let Some(relay) = &mut live.relay {
            relay.settle(&self.engine, plan);
        }
        live.listeners = listeners::of_plan(plan, &paths);
        Ok(problems)
    }

    fn attach(
        &mut self,
        name: &str,
        workload: &ResolvedWorkload,
        retry: &mut Backoff,
    ) -> Result<Live> {
        let place = Place::find(&self.cgroup_root, workload)?;
        let id = match self.dataplane.attach(&place.binding()) {
            Ok(id) => id,
            Err(error) => {
                retry.fail(Instant::now());
                return Err(error);
            }
        };
        retry.reset();
        let digest = self.dataplane.in_force(id);
        let adopted = self.dataplane.word(id).plan() != 0 && !self.dataplane.refuses(id);
        tracing::info!(workload = name, cgroup = %place.cgroup.path.display(), adopted, "attached");
        Ok(Live {
            id,
            place,
            digest,
            adopted,
            relay: None,
            listeners: Listeners::default(),
        })
    }

    /// Lets a workload go.
    pub(super) fn detach(&mut self, name: &str, live: Live) {
        tracing::info!(workload = name, "detached");
        self.dataplane.detach(live.id);
        if let Some(relay) = live.relay {
            relay.stop(&self.engine);
        }
    }
}
