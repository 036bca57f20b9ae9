//! What has changed of a pod that is worth telling, and when. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::{Pod, PodRef};
use crate::{
    backoff::Backoff,
    model::{
        catalogue::{SEVERAL_DEFAULTS, SEVERAL_SELECTORS},
        diagnostic::Diagnostic,
    },
    observe::status::{CaptureBy, State, WorkloadStatus},
};

/// How long a pod that was told of is left alone: the first time, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_mins(10));

/// A pod that has not changed for so long is told of at once again.
const CALM: Duration = Duration::from_mins(20);

/// Most news of all pods in one [`PERIOD`]: a node with hundreds of pods must not flood the
/// API server when something concerns them all.
const AT_ONCE: usize = 20;

/// The time that [`AT_ONCE`] counts for.
const PERIOD: Duration = Duration::from_secs(2);

/// Longest note that an API server takes, in bytes.
const NOTE: usize = 1024;

/// What is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The wanted plan is in force.
    Captured,
    /// New connections are not to be captured, and pass.
    CaptureOff,
    /// Nothing is in force.
    CaptureRefused,
    /// An older plan is in force.
    CaptureStale,
    /// It was captured, and is not any more.
    CaptureLost,
    /// It is captured, and something of it does not work.
    CaptureDamaged,
    /// Several Sidecars want it.
    SidecarConflict,
    /// It is not to be captured at all. There is no such event: who has turned that off knows, and pods
    /// that run to their end are none. But the annotation must not go on telling what was.
    NotCaptured,
}

impl Reason {
    /// The event's reason.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Captured => "Captured",
            Self::CaptureOff => "CaptureOff",
            Self::CaptureRefused => "CaptureRefused",
            Self::CaptureStale => "CaptureStale",
            Self::CaptureLost => "CaptureLost",
            Self::CaptureDamaged => "CaptureDamaged",
            Self::SidecarConflict => "SidecarConflict",
            Self::NotCaptured => "NotCaptured",
        }
    }

    /// Whether it is as it should be.
    #[must_use]
    pub const fn is_well(self) -> bool {
        matches!(self, Self::Captured | Self::CaptureOff | Self::NotCaptured)
    }
}

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Why.
    pub reason: Reason,
    /// For people.
    pub note: String,
}

/// News of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The pod.
    pub pod: PodRef,
    /// One event, or two where there is a conflict besides; none where only the annotation is wrong.
    pub events: Vec<Event>,
    /// What the annotation says; `None`: there is to be none.
    pub status: Option<String>,
}

/// What there is to tell of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The pod.
    pub pod: PodRef,
    /// What has become of its capture; `None`: it has not been tried yet.
    pub capture: Option<Event>,
    /// The conflict of its Sidecar with others.
    pub conflict: Option<String>,
    /// What the annotation says now.
    pub shown: Option<String>,
}

impl Subject {
    /// Whether there is the same to tell.
    fn is_as(&self, other: &Self) -> bool {
        (&self.capture, &self.conflict) == (&other.capture, &other.conflict)
    }
}

/// The pods among the workloads, and those that are to be none.
#[must_use]
pub fn subjects(
    workloads: &[WorkloadStatus],
    diagnostics: &[Diagnostic],
    pods: &BTreeMap<String, Pod>,
) -> Vec<Subject> {
    // By the Sidecar in force, as it is named in the state.
    let conflicts: BTreeMap<String, &str> = diagnostics
        .iter()
        .filter(|of| [SEVERAL_SELECTORS.id, SEVERAL_DEFAULTS.id].contains(&of.code))
        .filter_map(|of| Some((of.resource.as_ref()?.to_string(), &*of.message)))
        .collect();
    let subject = |workload: &WorkloadStatus| {
        let sidecar = workload.sidecar.as_ref();
        let Pod { pod, shown, .. } = pods.get(&workload.workload)?.clone();
        Some(Subject {
            pod,
            shown,
            capture: capture(workload),
            conflict: sidecar.and_then(|name| {
                let conflict = conflicts.get(name)?;
                Some(format!("{name} {conflict}"))
            }),
        })
    };
    let workloads_too: BTreeSet<&str> = workloads.iter().map(|of| &*of.workload).collect();
    let left = pods
        .iter()
        .filter(|(name, pod)| pod.left && !workloads_too.contains(name.as_str()))
        .map(|(_, pod)| Subject {
            pod: pod.pod.clone(),
            shown: pod.shown.clone(),
            capture: Some(Event {
                reason: Reason::NotCaptured,
                note: String::new(),
            }),
            conflict: None,
        });
    workloads.iter().filter_map(subject).chain(left).collect()
}

/// What has become of a workload's capture; `None`: it has not been tried yet.
fn capture(workload: &WorkloadStatus) -> Option<Event> {
    let problem = workload.problem.as_deref();
    let by = |by| match by {
        CaptureBy::Operator => "an operator says so (`sidecar-agent capture`)",
        CaptureBy::Annotation => "its labels or annotations, or its namespace's, say so",
        CaptureBy::Default => "nobody says otherwise",
    };
    let sidecar = workload.sidecar.as_ref();
    let of = sidecar.map_or_else(|| "Istio's built-in default".into(), ToString::to_string);
    let (reason, note) = match (workload.state, problem) {
        (State::Captured, None) if workload.capture.actual => {
            (Reason::Captured, format!("new connections follow {of}"))
        }
        (State::Captured, None) => (
            Reason::CaptureLost,
            "the kernel lets its new connections pass, or refuses them; it is tried again".into(),
        ),
        (State::Captured, Some(problem)) => (Reason::CaptureDamaged, problem.to_owned()),
        (State::Stale, problem) => (
            Reason::CaptureStale,
            format!(
                "an older plan is in force: {}",
                problem.unwrap_or("the wanted one is not applied yet")
            ),
        ),
        (State::Off, _) => (
            Reason::CaptureOff,
            format!("new connections pass: {}", by(workload.capture.by)),
        ),
        (State::Pending, problem) => (Reason::CaptureRefused, problem?.to_owned()),
    };
    Some(Event { reason, note })
}

/// What was told of each pod.
#[derive(Debug, Default)]
pub struct News {
    /// The annotation is written.
    annotates: bool,
    /// By UID: the same name may be another pod.
    pods: BTreeMap<String, Known>,
    /// Pods that were as they should be at the first look, whose annotation has found no room yet.
    unwritten: BTreeSet<String>,
    /// The first look is over.
    begun: bool,
    /// When the present period began, and how many were told in it.
    period: Option<(Instant, usize)>,
}

/// What is known of a pod.
#[derive(Debug)]
struct Known {
    told: Subject,
    /// When, if at all.
    at: Option<Instant>,
    pause: Backoff,
}

impl News {
    /// Nothing was told yet; `annotates`: the annotation is written.
    #[must_use]
    pub fn new(annotates: bool) -> Self {
        Self {
            annotates,
            ..Self::default()
        }
    }

    /// Looks at the pods, all of them, and tells news to `tell`, which says whether it has taken them.
    /// What it has not is told later, and so is what comes too soon after other news: as it is then.
    pub fn look(
        &mut self,
        subjects: Vec<Subject>,
        now: Instant,
        mut tell: impl FnMut(Told) -> bool,
    ) {
        let present: BTreeSet<&str> = subjects.iter().map(|of| &*of.pod.uid).collect();
        self.pods.retain(|uid, _| present.contains(&**uid));
        self.unwritten.retain(|uid| present.contains(&**uid));
        let begins = !std::mem::replace(&mut self.begun, true);
        for subject in subjects {
            let Some(capture) = &subject.capture else {
                continue;
            };
            let uid = subject.pod.uid.clone();
            let known = self.pods.get(&uid);
            let is_news =
                |known: &Known| !known.told.is_as(&subject) && known.pause.left(now).is_zero();
            if !known.is_none_or(is_news) {
                continue;
            }
            // Of most pods that are none of ours nothing was ever told.
            if capture.reason == Reason::NotCaptured && known.is_none() && subject.shown.is_none() {
                continue;
            }
            let mut next = Known::from(subject.clone(), known);
            let mut told = news(&subject, capture, known.map(|known| &known.told));
            let is_well = capture.reason.is_well() && subject.conflict.is_none();
            let is_quiet = is_well && (begins || self.unwritten.contains(&uid));
            if is_quiet {
                told.events.clear();
            }
            let writes = self.annotates && !(is_quiet && told.status == subject.shown);
            if writes || !told.events.is_empty() {
                if !self.has_room(now) || !tell(told) {
                    if is_quiet {
                        self.unwritten.insert(uid);
                    }
                    continue;
                }
                self.count();
                if !is_quiet {
                    next.was_told(now);
                }
            }
            self.unwritten.remove(&uid);
            self.pods.insert(uid, next);
        }
    }

    fn has_room(&mut self, now: Instant) -> bool {
        let is_over = |began| now.saturating_duration_since(began) >= PERIOD;
        if self.period.is_none_or(|(began, _)| is_over(began)) {
            self.period = Some((now, 0));
        }
        self.period.is_none_or(|(_, told)| told < AT_ONCE)
    }

    fn count(&mut self) {
        if let Some((_, told)) = &mut self.period {
            *told += 1;
        }
    }
}

impl Known {
    fn from(told: Subject, before: Option<&Self>) -> Self {
        Self {
            told,
            at: before.and_then(|before| before.at),
            pause: before.map_or(Backoff::new(PAUSE.0, PAUSE.1), |before| {
                before.pause.clone()
            }),
        }
    }

    fn was_told(&mut self, now: Instant) {
        let is_calm = |at| now.saturating_duration_since(at) > CALM;
        if self.at.is_some_and(is_calm) {
            self.pause.reset();
        }
        self.pause.fail(now);
        self.at = Some(now);
    }
}

/// What is told of a pod of which something else was told before, or nothing.
fn news(subject: &Subject, capture: &Event, before: Option<&Subject>) -> Told {
    let before_capture = before.and_then(|before| before.capture.as_ref());
    let mut events = Vec::new();
    if before_capture != Some(capture) && capture.reason != Reason::NotCaptured {
        events.push(lost(capture, before_capture).unwrap_or_else(|| capture.clone()));
    }
    if let Some(conflict) = &subject.conflict
        && before.is_none_or(|before| before.conflict.as_ref() != Some(conflict))
    {
        events.push(Event {
            reason: Reason::SidecarConflict,
            note: conflict.clone(),
        });
    }
    for event in &mut events {
        truncate(&mut event.note);
    }
    Told {
        pod: subject.pod.clone(),
        events,
        status: status(capture),
    }
}

/// That a pod is lost which was captured.
fn lost(now: &Event, before: Option<&Event>) -> Option<Event> {
    let was_captured = matches!(
        before?.reason,
        Reason::Captured | Reason::CaptureDamaged | Reason::CaptureStale
    );
    (was_captured && now.reason == Reason::CaptureRefused).then(|| Event {
        reason: Reason::CaptureLost,
        note: now.note.clone(),
    })
}

/// What the annotation says; `None`: there is none.
fn status(capture: &Event) -> Option<String> {
    let word = match capture.reason {
        Reason::NotCaptured => return None,
        Reason::Captured => return Some("captured".into()),
        Reason::CaptureOff => return Some("off".into()),
        Reason::CaptureRefused | Reason::CaptureLost => "pending",
        Reason::CaptureStale => "stale",
        Reason::CaptureDamaged | Reason::SidecarConflict => "captured",
    };
    let mut text = format!("{word}: {}", capture.note);
    truncate(&mut text);
    Some(text)
}

/// To what an API server takes.
fn truncate(text: &mut String) {
    if text.len() > NOTE {
        text.truncate(text.floor_char_boundary(NOTE - '…'.len_utf8()));
        text.push('…');
    }
}

#[cfg(test)]
mod tests;
