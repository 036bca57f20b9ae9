//! What is told of a node.

use super::{super::plugins::Standing, Live, Node, Workload};
use crate::{
    cli::render,
    dataplane::kernel_features,
    model::diagnostic::{Diagnostic, Severity},
    observe::{
        listeners::Listeners,
        status::{self, CaptureStatus, State, Status, TraceStatus, Unclaimed, WorkloadStatus},
    },
};

/// So many diagnostics are told with their text: it takes its time, and nobody reads thousands.
const TOLD: usize = 100;

impl Node {
    /// How many workloads are captured as wanted, and how many there are.
    pub fn captured(&self) -> (usize, usize) {
        let is_captured = |workload: &&Workload| {
            let live = workload.live.as_ref();
            live.and_then(|live| live.digest) == Some(workload.wanted.digest)
        };
        let captured = self.workloads.values().filter(is_captured).count();
        (captured, self.workloads.len())
    }

    /// The whole state; of what is wrong with the configuration the worst.
    pub fn status(&self, generation: u64) -> Status {
        let of = |severity| self.diagnostics().filter(move |of| of.severity == severity);
        let worst = of(Severity::Error).chain(of(Severity::Warning)).take(TOLD);
        Status {
            diagnostics: worst.filter_map(diagnostic_status).collect(),
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
            workloads: self.workloads(),
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
            acceleration: self.dataplane.accelerated().unwrap_or_default(),
            metrics: None,
            trace: TraceStatus::default(),
            cluster: None,
        }
    }

    /// The state of each workload.
    pub fn workloads(&self) -> Vec<WorkloadStatus> {
        let workloads = self.workloads.iter();
        workloads
            .map(|(name, workload)| self.workload_status(name, workload))
            .collect()
    }

    /// What is wrong with the configuration.
    pub fn findings(&self) -> &[Diagnostic] {
        &self.diagnostics
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

    /// How it stands with the capture of a workload, by `namespace/name`; `None`: nobody wants it.
    pub fn standing(&self, name: &str) -> Option<Standing> {
        let workload = self.workloads.get(name)?;
        let wanted = &workload.wanted;
        let place = workload.live.as_ref().map(|live| &live.place);
        let is_current =
            place.is_some_and(|place| place.is_current(&self.cgroup_root, &wanted.workload));
        let actual = workload.live.as_ref().and_then(|live| live.digest);
        Some(match &wanted.workload.netns {
            Some(netns) if is_current && actual == Some(wanted.digest) => {
                Standing::InForce(netns.clone())
            }
            _ => Standing::NotYet(
                workload
                    .told_problem()
                    .unwrap_or_else(|| "its plan is on its way".to_owned()),
            ),
        })
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
}

impl Workload {
    /// All that is wrong with it.
    fn told_problem(&self) -> Option<String> {
        let problems: Vec<_> = [&self.problem, &self.damage]
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect();
        (!problems.is_empty()).then(|| problems.join("; "))
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

/// A diagnostic as `status` has it: with the text for people, since the source is here.
fn diagnostic_status(diagnostic: &Diagnostic) -> Option<serde_json::Value> {
    let mut value = serde_json::to_value(diagnostic).ok()?;
    let rendered = render::text(std::slice::from_ref(diagnostic), false);
    value
        .as_object_mut()?
        .insert("rendered".into(), rendered.into());
    Some(value)
}
