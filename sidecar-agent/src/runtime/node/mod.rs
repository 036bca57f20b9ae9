//! This node's workloads: wanted and actual, brought together one by one. What fails for one
//! workload touches no other, keeps its last good plan, and is tried again.

mod collisions;
mod healing;
mod place;
mod reconcile;
mod status;

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Result, bail};
use foldhash::fast::RandomState;
use sidecar_common::keys::WorkloadId;

use self::place::Place;
use super::{
    ending::Left,
    relays::{Sockets, WorkloadRelay},
    toggles::{self, Toggles},
};
use crate::{
    backoff::Backoff,
    compile::WorkloadPlan,
    dataplane::{Dataplane, Originals, Refresh, Tap, cgroup},
    model::{
        ResourceRef,
        diagnostic::{Diagnostic, Severity},
    },
    observe::{
        listeners::Listeners,
        status::{CaptureStatus, Healed},
        trace::Directory,
    },
    relay::Engine,
    source::files::Places,
};

/// All workloads, and what serves them.
pub struct Node {
    dataplane: Dataplane,
    engine: Engine,
    originals: Arc<Originals>,
    cgroup_root: PathBuf,
    workloads: BTreeMap<String, Workload>,
    toggles: Toggles,
    /// The relay's listening sockets that the agent before has left, by workload.
    inherited: BTreeMap<String, Sockets>,
    diagnostics: Vec<Diagnostic>,
    places: Arc<Places>,
    /// Workloads whose turn it is, see [`Node::advance`].
    todo: VecDeque<String>,
    /// What is looked at once they had it.
    refresh: Option<Refresh>,
    /// Workloads that are looked at after that, see [`Node::look_for_collisions`].
    uninspected: VecDeque<String>,
    /// The workload whose links were looked at last.
    looked_at: String,
    /// Why pins of maps that others have removed could not be made again.
    pins_problem: Option<String>,
    healed: Healed,
    /// Who is who, for those who trace.
    pub directory: Directory,
}

/// An attempt to attach that the kernel refuses holds up everything else for as long as it takes.
const RETRY: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(8));

/// So many new diagnostics are logged at once: who logs more is throttled by journald, which then
/// passes over what matters.
const LOGGED: usize = 100;

struct Workload {
    wanted: WorkloadPlan,
    live: Option<Live>,
    /// Why the wanted plan is not (completely) in force.
    problem: Option<String>,
    /// When to try again to attach, where the kernel has refused.
    retry: Backoff,
    /// Applications in the way of its listeners. They do not keep the plan from being in force.
    in_use: Vec<Diagnostic>,
    /// Why what others have detached could not be attached again.
    damage: Option<String>,
}

/// A workload that is attached.
struct Live {
    id: WorkloadId,
    place: Place,
    /// Digest of the plan in force.
    digest: Option<blake3::Hash>,
    /// It was attached by an earlier agent, and what this one does for it is not done yet.
    adopted: bool,
    relay: Option<WorkloadRelay>,
    /// Those of the plan in force.
    listeners: Listeners,
}

impl Workload {
    fn new(wanted: WorkloadPlan) -> Self {
        Self {
            wanted,
            live: None,
            problem: None,
            retry: RETRY,
            in_use: Vec::new(),
            damage: None,
        }
    }

    /// Whether the plan in force is the one that is wanted.
    fn follows_what_is_wanted(&self) -> bool {
        let live = self.live.as_ref();
        live.and_then(|live| live.digest) == Some(self.wanted.digest)
    }

    /// Whether the kernel captures its new connections.
    fn is_captured(&self, dataplane: &Dataplane) -> bool {
        self.live.as_ref().is_some_and(|live| {
            let word = dataplane.word(live.id);
            word.plan() != 0 && !word.is_suspended() && !dataplane.refuses(live.id)
        })
    }
}

/// What tells diagnostics apart.
fn identity(
    Diagnostic {
        code,
        resource,
        field,
        message,
        ..
    }: &Diagnostic,
) -> (&str, Option<&ResourceRef>, &str, &str) {
    (code, resource.as_ref(), field, message)
}

impl Node {
    /// Takes over what is in the kernel, with a relay and the sockets that are to be served by it.
    pub fn start(
        dataplane: Dataplane,
        engine: Engine,
        toggles: Toggles,
        inherited: BTreeMap<String, Sockets>,
        directory: Directory,
    ) -> Result<Self> {
        Ok(Self {
            originals: Arc::new(dataplane.originals()?),
            dataplane,
            engine,
            cgroup_root: cgroup::root()?,
            workloads: BTreeMap::new(),
            toggles,
            inherited,
            diagnostics: Vec::new(),
            places: Arc::default(),
            todo: VecDeque::new(),
            refresh: None,
            uninspected: VecDeque::new(),
            looked_at: String::new(),
            pins_problem: None,
            healed: Healed::default(),
            directory,
        })
    }

    /// Lets go of everything but live relayed connections: the pins are unlocked, and the relay's
    /// listeners not served. What is attached stays so.
    pub fn give_up(self) -> Left {
        let mut paused = BTreeMap::new();
        for (name, workload) in self.workloads {
            if let Some(relay) = workload.live.and_then(|live| live.relay) {
                paused.insert(name, relay.pause(&self.engine));
            }
        }
        Left {
            engine: self.engine,
            toggles: self.toggles,
            paused,
            directory: self.directory,
        }
    }

    /// Ends: as [`give_up`](Self::give_up), but the relay's listeners are closed.
    pub fn end(self) -> Left {
        for workload in self.workloads.into_values() {
            if let Some(relay) = workload.live.and_then(|live| live.relay) {
                relay.stop(&self.engine);
            }
        }
        Left {
            engine: self.engine,
            toggles: self.toggles,
            paused: BTreeMap::new(),
            directory: self.directory,
        }
    }

    /// Closes the inherited sockets that no workload has claimed.
    pub fn close_unclaimed(&mut self) {
        self.inherited.clear();
    }

    /// The reader's end of what programs tell while somebody traces.
    pub fn tap(&self) -> Result<Tap> {
        self.dataplane.tap()
    }

    /// Decisions that could not be told in the kernel.
    pub fn events_lost(&self) -> u64 {
        self.dataplane.events_lost().unwrap_or_default()
    }

    /// Takes in what is wanted; [`advance`](Self::advance) brings the node to it.
    pub fn want(
        &mut self,
        wanted: Vec<WorkloadPlan>,
        diagnostics: Vec<Diagnostic>,
        places: Arc<Places>,
    ) {
        self.places = places;
        self.log_new(&diagnostics);
        self.diagnostics = diagnostics;
        let mut before = std::mem::take(&mut self.workloads);
        for wanted in wanted {
            let name = wanted.workload.to_string();
            let workload = match before.remove(&name) {
                // What was in the way may be gone.
                Some(known) => Workload {
                    wanted,
                    retry: RETRY,
                    ..known
                },
                None => Workload::new(wanted),
            };
            self.workloads.insert(name, workload);
        }
        // Those that are gone first: their cgroup may now be another's.
        for (name, workload) in before {
            if let Some(live) = workload.live {
                self.detach(&name, live);
            }
        }
        // A plan that is the same may come from resources that are not, or that were moved.
        for workload in self.workloads.values() {
            if let Some(live) = &workload.live
                && workload.follows_what_is_wanted()
            {
                let plan = self.dataplane.word(live.id).plan();
                self.directory.announce(live.id, plan, &workload.wanted);
            }
        }
        self.reconcile();
    }

    /// Logs what is wrong and was not before, the worst first; not all of it where there is much.
    fn log_new(&self, diagnostics: &[Diagnostic]) {
        let known: HashSet<_, RandomState> = self.diagnostics.iter().map(identity).collect();
        let new = diagnostics
            .iter()
            .filter(|of| !known.contains(&identity(of)));
        let (errors, warnings): (Vec<_>, Vec<_>) =
            new.partition(|of| of.severity == Severity::Error);
        let mut all = errors.into_iter().chain(warnings);
        for diagnostic in all.by_ref().take(LOGGED) {
            tracing::warn!(code = diagnostic.code, "{diagnostic}");
        }
        let more = all.count();
        if more > 0 {
            tracing::warn!(
                more,
                "not all is logged: `sidecar-agent check` tells everything"
            );
        }
    }

    /// Lets go what an earlier agent has left attached and no workload has claimed. One that is
    /// wanted, and cannot be attached yet, stays captured.
    pub fn let_go_unclaimed(&mut self) {
        let pending = self.workloads.values().filter(|of| of.live.is_none());
        let wanted = pending.filter_map(|of| {
            let path = &of.wanted.workload.cgroup;
            cgroup::Cgroup::open(&self.cgroup_root, path).ok()
        });
        let wanted = wanted.map(|cgroup| cgroup.id).collect();
        self.dataplane.let_go_unclaimed(&wanted);
    }

    /// Has new connections of a workload be captured, or pass; `None`: as its configuration says.
    /// Answers with whether it is captured now.
    ///
    /// # Errors
    /// If there is no such workload, or what was said cannot be remembered; it is as it was
    /// then.
    pub fn capture(&mut self, name: &str, on: Option<bool>) -> Result<CaptureStatus> {
        let Some(workload) = self.workloads.get(name) else {
            let known: Vec<_> = self.workloads.keys().map(String::as_str).collect();
            bail!(
                "no workload `{name}` on this node; there {}",
                match known.as_slice() {
                    [] => "is none".to_owned(),
                    some => format!("are: {}", some.join(", ")),
                }
            );
        };
        let resolved = &workload.wanted.workload;
        let before = self.toggles.wanted(resolved);
        let capture = toggles::wanted(on, resolved);
        let mut bring_to = |capture: &CaptureStatus| {
            let live = workload.live.as_ref();
            live.map_or(Ok(()), |live| {
                self.dataplane.suspend(live.id, !capture.wanted)
            })
        };
        // The kernel first: the disk may take its time.
        bring_to(&capture)?;
        if let Err(error) = self.toggles.set(name, on) {
            bring_to(&before)?;
            return Err(error);
        }
        tracing::info!(workload = name, on = capture.wanted, by = %capture.by, "capture toggled");
        Ok(CaptureStatus {
            actual: workload.is_captured(&self.dataplane),
            ..capture
        })
    }

    /// Has what changes without a change of configuration be looked after.
    pub fn refresh(&mut self) {
        if self.is_settled() && self.refresh.is_none() {
            self.refresh = Some(self.dataplane.begin_refresh());
            self.reconcile();
        }
    }
}
