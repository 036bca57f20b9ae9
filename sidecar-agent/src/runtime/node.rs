//! This node's workloads: wanted and actual, brought together one by one. What fails for one
//! workload touches no other, keeps its last good plan, and is tried again.

mod healing;

use std::{
    collections::{BTreeMap, HashSet},
    os::fd::OwnedFd,
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use rustix::fs::{CWD, Mode, OFlags, openat};
use sidecar_common::keys::WorkloadId;

use super::{
    ending::Left,
    relays::{Sockets, WorkloadRelay},
    toggles::{self, Toggles},
};
use crate::{
    cli::render,
    compile::{WorkloadPlan, in_use},
    dataplane::{Binding, Dataplane, Originals, Tap, cgroup, kernel_features, netns::Netns},
    model::{
        ResourceRef,
        diagnostic::Diagnostic,
        failure::{Action, Case},
    },
    observe::{
        listeners::{self, Listeners, Paths},
        status::{
            self, CaptureStatus, Healed, State, Status, TraceStatus, Unclaimed, WorkloadStatus,
        },
        trace::Directory,
    },
    relay::Engine,
    resolve::workload::{Proxy, ResolvedWorkload},
    source::files::Places,
};

/// All workloads, and what serves them.
pub struct Node {
    dataplane: Dataplane,
    engine: Engine,
    originals: Arc<Originals>,
    cgroup_root: std::path::PathBuf,
    workloads: BTreeMap<String, Workload>,
    toggles: Toggles,
    /// The relay's listening sockets that the agent before has left, by workload.
    inherited: BTreeMap<String, Sockets>,
    diagnostics: Vec<Diagnostic>,
    places: Arc<Places>,
    /// The workload whose links were looked at last.
    looked_at: String,
    /// Why pins of maps that others have removed could not be made again.
    pins_problem: Option<String>,
    healed: Healed,
    /// Who is who, for those who trace.
    pub directory: Directory,
}

struct Workload {
    wanted: WorkloadPlan,
    live: Option<Live>,
    /// Why the wanted plan is not (completely) in force.
    problem: Option<String>,
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

/// Where a workload is: what an attachment is made to.
struct Place {
    cgroup: cgroup::Cgroup,
    proxy_cgroup: Option<cgroup::Cgroup>,
    netns: Netns,
    proxy: Proxy,
    /// What is `/` for paths of unix sockets; `None`: the agent's own.
    root: Option<Arc<OwnedFd>>,
    root_path: Option<String>,
}

impl Workload {
    fn new(wanted: WorkloadPlan) -> Self {
        Self {
            wanted,
            live: None,
            problem: None,
            in_use: Vec::new(),
            damage: None,
        }
    }

    /// All that is wrong with it.
    fn told_problem(&self) -> Option<String> {
        let problems: Vec<_> = [&self.problem, &self.damage]
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect();
        (!problems.is_empty()).then(|| problems.join("; "))
    }

    /// Whether the kernel captures its new connections.
    fn is_captured(&self, dataplane: &Dataplane) -> bool {
        self.live.as_ref().is_some_and(|live| {
            let word = dataplane.word(live.id);
            word.plan() != 0 && !word.is_suspended() && !dataplane.refuses(live.id)
        })
    }
}

impl Live {
    /// Its listeners, with what was relayed for each.
    fn listeners(&self) -> Listeners {
        let mut listeners = self.listeners.clone();
        if let Some(relay) = &self.relay {
            relay.tell(&mut listeners);
        }
        listeners
    }
}

impl Place {
    fn find(root: &std::path::Path, workload: &ResolvedWorkload) -> Result<Self> {
        let proxy_cgroup = match &workload.proxy {
            Proxy::External {
                cgroup: Some(path), ..
            } => Some(cgroup::Cgroup::open(root, path)?),
            _ => None,
        };
        Ok(Self {
            cgroup: cgroup::Cgroup::open(root, &workload.cgroup)?,
            proxy_cgroup,
            netns: Netns::open(workload.netns.as_deref())?,
            proxy: workload.proxy.clone(),
            root: workload
                .root
                .as_deref()
                .map(open_root)
                .transpose()?
                .map(Arc::new),
            root_path: workload.root.clone(),
        })
    }

    /// Whether this still is where the workload is.
    fn is_current(&self, root: &std::path::Path, workload: &ResolvedWorkload) -> bool {
        self.proxy == workload.proxy
            && self.root_path == workload.root
            && self.cgroup.path == root.join(&workload.cgroup)
            && self.cgroup.is_alive()
            && self
                .proxy_cgroup
                .as_ref()
                .is_none_or(cgroup::Cgroup::is_alive)
            && self.netns.is_at(workload.netns.as_deref())
    }

    /// Whether what was attached to is still there.
    fn is_alive(&self) -> bool {
        self.cgroup.is_alive() && self.netns.is_alive()
    }

    fn binding(&self) -> Binding<'_> {
        Binding {
            cgroup: &self.cgroup,
            proxy_cgroup: self.proxy_cgroup.as_ref(),
            netns: &self.netns,
        }
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

/// A diagnostic as `status` has it: with the text for people, since the source is here.
fn diagnostic_status(diagnostic: &Diagnostic) -> Option<serde_json::Value> {
    let mut value = serde_json::to_value(diagnostic).ok()?;
    let rendered = render::text(std::slice::from_ref(diagnostic), false);
    value
        .as_object_mut()?
        .insert("rendered".into(), rendered.into());
    Some(value)
}

fn open_root(path: &str) -> Result<OwnedFd> {
    openat(
        CWD,
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .with_context(|| format!("opening the workload's root directory {path}"))
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

    /// Brings the node to what is wanted.
    pub fn apply(
        &mut self,
        wanted: Vec<WorkloadPlan>,
        diagnostics: Vec<Diagnostic>,
        places: Arc<Places>,
    ) {
        self.places = places;
        let known: HashSet<_> = self.diagnostics.iter().map(identity).collect();
        for diagnostic in &diagnostics {
            if !known.contains(&identity(diagnostic)) {
                tracing::warn!(code = diagnostic.code, "{diagnostic}");
            }
        }
        self.diagnostics = diagnostics;
        let mut before = std::mem::take(&mut self.workloads);
        for wanted in wanted {
            let name = wanted.workload.to_string();
            let workload = match before.remove(&name) {
                Some(known) => Workload { wanted, ..known },
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
        self.reconcile();
        // A plan that is the same may come from resources that are not, or that were moved.
        for workload in self.workloads.values() {
            if let Some(live) = &workload.live
                && live.digest == Some(workload.wanted.digest)
            {
                let plan = self.dataplane.word(live.id).plan();
                self.directory.announce(live.id, plan, &workload.wanted);
            }
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

    /// Looks after what changes without a change of configuration.
    pub fn refresh(&mut self) {
        self.dataplane.refresh();
        self.reconcile();
        self.heal();
    }

    /// Asks the kernel where applications listen, and whether a listener of theirs is where a
    /// Sidecar declares one. Reads /proc, so it is not for every second.
    pub fn look_for_collisions(&mut self) {
        for (name, workload) in &mut self.workloads {
            let plan = &workload.wanted.plan;
            let ports = in_use::ports(plan);
            let listening = workload
                .live
                .as_ref()
                .map(|live| self.dataplane.listening(live.id, &ports))
                .unwrap_or_default();
            let found = in_use::collisions(plan, name, &listening);
            let found = self.places.diagnostics(&found);
            for diagnostic in &found {
                if !workload.in_use.contains(diagnostic) {
                    tracing::warn!(code = diagnostic.code, "{diagnostic}");
                }
            }
            workload.in_use = found;
        }
    }

    /// How many workloads are captured as wanted, and how many there are.
    pub fn captured(&self) -> (usize, usize) {
        let is_captured = |workload: &&Workload| {
            let live = workload.live.as_ref();
            live.and_then(|live| live.digest) == Some(workload.wanted.digest)
        };
        let captured = self.workloads.values().filter(is_captured).count();
        (captured, self.workloads.len())
    }

    /// The whole state.
    pub fn status(&self, generation: u64) -> Status {
        Status {
            diagnostics: self.diagnostics().filter_map(diagnostic_status).collect(),
            ..self.summary(generation)
        }
    }

    /// The state without the text of what is wrong with the configuration, which takes its time.
    pub fn summary(&self, generation: u64) -> Status {
        let refused = self.dataplane.refused_updates().unwrap_or_default();
        let attached = self.dataplane.attached().into_iter();
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            kernel_features: kernel_features(),
            generation,
            workloads: self
                .workloads
                .iter()
                .map(|(name, workload)| self.workload_status(name, workload))
                .collect(),
            unclaimed: self
                .dataplane
                .unclaimed()
                .into_iter()
                .map(|(slot, cgroups)| Unclaimed { slot, cgroups })
                .collect(),
            diagnostics: Vec::new(),
            findings: status::findings(self.diagnostics()),
            maps: status::maps(self.dataplane.maps(), refused),
            programs: attached
                .map(|(name, count)| (name.to_owned(), count))
                .collect(),
            gone: status::decisions(self.dataplane.counters_of_gone()),
            relay: self.engine.stats().into(),
            healed: self.healed,
            metrics: None,
            trace: TraceStatus::default(),
        }
    }

    /// Workloads for which nothing is in force, and why.
    pub fn pending(&self) -> impl Iterator<Item = (&str, &str)> {
        let is_pending = |of: &Workload| of.live.as_ref().is_none_or(|live| live.digest.is_none());
        self.workloads
            .iter()
            .filter(move |(_, workload)| is_pending(workload))
            .map(|(name, workload)| (&**name, workload.problem.as_deref().unwrap_or_default()))
    }

    /// What is wrong with the configuration, and with its listeners.
    fn diagnostics(&self) -> impl Iterator<Item = &Diagnostic> {
        let in_use = self.workloads.values().flat_map(|of| &of.in_use);
        self.diagnostics.iter().chain(in_use)
    }

    fn workload_status(&self, name: &str, workload: &Workload) -> WorkloadStatus {
        let actual = workload.live.as_ref().and_then(|live| live.digest);
        let resolved = &workload.wanted.workload;
        let capture = CaptureStatus {
            actual: workload.is_captured(&self.dataplane),
            ..self.toggles.wanted(resolved)
        };
        WorkloadStatus {
            workload: name.to_owned(),
            state: match actual {
                Some(_) if !capture.wanted => State::Off,
                Some(actual) if actual == workload.wanted.digest => State::Captured,
                Some(_) => State::Stale,
                None => State::Pending,
            },
            capture,
            problem: workload.told_problem(),
            cgroup: resolved.cgroup.clone(),
            netns: resolved.netns.clone(),
            sidecar: resolved
                .sidecar
                .as_ref()
                .map(|sidecar| sidecar.reference("Sidecar").to_string()),
            wanted: workload.wanted.digest.to_string(),
            actual: actual.map(|digest| digest.to_string()),
            decisions: workload.live.as_ref().map_or_else(Vec::new, |live| {
                status::decisions(self.dataplane.counters(live.id))
            }),
            listeners: workload
                .live
                .as_ref()
                .map(Live::listeners)
                .unwrap_or_default(),
        }
    }

    fn reconcile(&mut self) {
        let names: Vec<String> = self.workloads.keys().cloned().collect();
        // First all that leave a place, then those that come: a cgroup may change hands.
        for name in &names {
            if self.has_to_leave(name)
                && let Some(live) = self.workloads.get_mut(name).and_then(|of| of.live.take())
            {
                self.detach(name, live);
            }
        }
        for name in names {
            // Taken out while it is worked on: the rest of the node is needed for that.
            let Some(mut workload) = self.workloads.remove(&name) else {
                continue;
            };
            let before = workload.problem.take();
            workload.problem = match self.reconcile_one(&name, &mut workload, before.is_some()) {
                Ok(problems) if problems.is_empty() => None,
                Ok(problems) => Some(problems.join("; ")),
                Err(error) => Some(format!("{error:#}")),
            };
            if workload.problem != before {
                if let Some(problem) = &workload.problem {
                    tracing::warn!(workload = name, "{problem}");
                } else {
                    tracing::info!(workload = name, "in order again");
                }
            }
            self.workloads.insert(name, workload);
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
        let live = match &mut workload.live {
            Some(live) => {
                if !live.place.is_current(&self.cgroup_root, wanted) {
                    // See `has_to_leave`: it could not be found.
                    Place::find(&self.cgroup_root, wanted)
                        .context("the last good plan stays in force where it was")?;
                }
                live
            }
            none => none.insert(self.attach(name, wanted)?),
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

    fn attach(&mut self, name: &str, workload: &ResolvedWorkload) -> Result<Live> {
        let place = Place::find(&self.cgroup_root, workload)?;
        let id = self.dataplane.attach(&place.binding())?;
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

    fn detach(&mut self, name: &str, live: Live) {
        tracing::info!(workload = name, "detached");
        self.dataplane.detach(live.id);
        if let Some(relay) = live.relay {
            relay.stop(&self.engine);
        }
    }
}
