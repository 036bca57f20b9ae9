//! What is told of pods, and how often.

use super::*;
use crate::observe::{
    listeners::Listeners,
    status::{CaptureStatus, State},
};

fn workload(name: &str, state: State, problem: Option<&str>) -> WorkloadStatus {
    let is_on = state != State::Off;
    WorkloadStatus {
        workload: name.into(),
        state,
        problem: problem.map(str::to_owned),
        capture: CaptureStatus {
            wanted: is_on,
            by: if is_on {
                CaptureBy::Default
            } else {
                CaptureBy::Operator
            },
            actual: matches!(state, State::Captured | State::Stale),
        },
        cgroup: String::new(),
        netns: None,
        sidecar: Some("Sidecar shop/default (cluster:1)".into()),
        wanted: String::new(),
        actual: None,
        decisions: Vec::new(),
        listeners: Listeners::default(),
    }
}

fn pods(workloads: &[WorkloadStatus]) -> BTreeMap<String, Pod> {
    let pod = |of: &WorkloadStatus| (of.workload.clone(), pod(&of.workload, None, false));
    workloads.iter().map(pod).collect()
}

fn pod(name: &str, shown: Option<&str>, left: bool) -> Pod {
    let (namespace, name) = name.split_once('/').unwrap();
    let pod = PodRef {
        namespace: namespace.into(),
        name: name.into(),
        uid: format!("uid-{name}"),
    };
    Pod {
        pod,
        shown: shown.map(str::to_owned),
        left,
    }
}

/// A node that is looked at.
struct Node {
    news: News,
    now: Instant,
    /// How many the queue takes.
    room: usize,
}

impl Node {
    /// One that was looked at before it had pods.
    fn running() -> Self {
        let mut node = Self::starting();
        assert_eq!(node.look(&[]), [""; 0]);
        node
    }

    fn starting() -> Self {
        Self {
            news: News::default(),
            now: Instant::now(),
            room: usize::MAX,
        }
    }

    fn told(&mut self, workloads: &[WorkloadStatus], diagnostics: &[Diagnostic]) -> Vec<Told> {
        self.told_of(subjects(workloads, diagnostics, &pods(workloads)))
    }

    fn told_of(&mut self, subjects: Vec<Subject>) -> Vec<Told> {
        let mut told = Vec::new();
        let mut room = self.room;
        self.news.look(subjects, self.now, |news| {
            let takes = room > 0;
            if takes {
                room -= 1;
                told.push(news);
            }
            takes
        });
        told
    }

    /// `NAME REASON` of each event.
    fn look(&mut self, workloads: &[WorkloadStatus]) -> Vec<String> {
        self.look_with(workloads, &[])
    }

    fn look_with(
        &mut self,
        workloads: &[WorkloadStatus],
        diagnostics: &[Diagnostic],
    ) -> Vec<String> {
        let told = self.told(workloads, diagnostics);
        let line = |pod: &PodRef, event: &Event| format!("{} {}", pod.name, event.reason.name());
        told.iter()
            .flat_map(|told| told.events.iter().map(|event| line(&told.pod, event)))
            .collect()
    }

    fn wait(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }
}

#[test]
fn each_state_is_told_once_by_its_name() {
    let mut damaged = workload("shop/a", State::Captured, Some("the relay: no port"));
    damaged.capture.actual = true;
    let mut gone = workload("shop/a", State::Captured, None);
    gone.capture.actual = false;
    for (workload, reason) in [
        (workload("shop/a", State::Captured, None), "Captured"),
        (workload("shop/a", State::Off, None), "CaptureOff"),
        (workload("shop/a", State::Stale, None), "CaptureStale"),
        (
            workload("shop/a", State::Pending, Some("no cgroup")),
            "CaptureRefused",
        ),
        (damaged, "CaptureDamaged"),
        (gone, "CaptureLost"),
    ] {
        let mut node = Node::running();
        let workloads = [workload];
        assert_eq!(node.look(&workloads), [format!("a {reason}")]);
        node.wait(3600);
        assert_eq!(node.look(&workloads), [""; 0], "{reason} again");
    }
}

#[test]
fn what_has_just_begun_is_not_told_and_no_pod_neither() {
    let mut node = Node::running();
    let begun = [workload("shop/a", State::Pending, None)];
    assert_eq!(node.look(&begun), [""; 0]);
    let of_no_pod = subjects(
        &[workload("shop/a", State::Captured, None)],
        &[],
        &BTreeMap::new(),
    );
    assert!(of_no_pod.is_empty(), "{of_no_pod:?}");
    // Of a pod that was told of it is no news, and what comes then is compared with before.
    let captured = [workload("shop/a", State::Captured, None)];
    assert_eq!(node.look(&captured), ["a Captured"]);
    node.wait(60);
    assert_eq!(node.look(&begun), [""; 0]);
    assert_eq!(node.look(&captured), [""; 0]);
}

#[test]
fn what_is_well_when_the_agent_starts_is_no_news() {
    let mut node = Node::starting();
    let workloads = [
        workload("shop/a", State::Captured, None),
        workload("shop/b", State::Off, None),
        workload("shop/c", State::Pending, Some("no cgroup")),
    ];
    assert_eq!(node.look(&workloads), ["c CaptureRefused"]);
    // What changes then is told at once.
    let workloads = [
        workload("shop/a", State::Stale, Some("does not fit")),
        workload("shop/b", State::Off, None),
    ];
    assert_eq!(node.look(&workloads), ["a CaptureStale"]);
}

#[test]
fn what_was_captured_is_lost_and_a_new_pod_is_not() {
    let mut node = Node::running();
    let captured = [workload("shop/a", State::Captured, None)];
    assert_eq!(node.look(&captured), ["a Captured"]);
    node.wait(60);
    let refused = [
        workload("shop/a", State::Pending, Some("detached")),
        workload("shop/b", State::Pending, Some("detached")),
    ];
    let told = node.told(&refused, &[]);
    let reasons: Vec<_> = told.iter().map(|told| told.events[0].reason).collect();
    assert_eq!(reasons, [Reason::CaptureLost, Reason::CaptureRefused]);
    assert_eq!(told[0].status.as_deref(), Some("pending: detached"));
    // One that comes back with the same name is another.
    assert_eq!(node.look(&[]), [""; 0]);
    assert_eq!(node.look(&refused[..1]), ["a CaptureRefused"]);
}

#[test]
fn a_pod_that_changes_to_and_fro_is_told_of_ever_more_seldom() {
    let mut node = Node::running();
    let on = [workload("shop/a", State::Captured, None)];
    let off = [workload("shop/a", State::Off, None)];
    let mut told = Vec::new();
    for second in 0..3600 {
        let now = if second % 2 == 0 { &on } else { &off };
        if !node.look(now).is_empty() {
            told.push(second);
        }
        node.wait(1);
    }
    assert!(told.len() < 14, "{told:?}");
    let gaps: Vec<_> = told.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps[0] >= 10 && gaps.last() >= Some(&600), "{gaps:?}");
    assert!(gaps.iter().all(|gap| *gap <= 602), "{gaps:?}");

    // The last state is told in the end, whatever was left out.
    for _ in 0..1200 {
        node.look(&off);
        node.wait(1);
    }
    assert_eq!(node.look(&off), [""; 0]);
    // After a calm time a change is told at once, and soon another.
    node.wait(CALM.as_secs());
    assert_eq!(node.look(&on), ["a Captured"]);
    node.wait(11);
    assert_eq!(node.look(&off), ["a CaptureOff"]);
}

#[test]
fn what_finds_no_room_is_told_later_as_it_is_then() {
    let mut node = Node::running();
    let names: Vec<String> = (0..50).map(|number| format!("shop/p{number}")).collect();
    let all = |state| -> Vec<WorkloadStatus> {
        let of = |name: &String| workload(name, state, None);
        names.iter().map(of).collect()
    };
    node.room = 5;
    assert_eq!(node.look(&all(State::Captured)).len(), 5);
    node.room = usize::MAX;
    assert_eq!(node.look(&all(State::Captured)).len(), AT_ONCE - 5);
    assert_eq!(node.look(&all(State::Captured)).len(), 0, "of this period");
    node.wait(PERIOD.as_secs());
    let told = node.told(&all(State::Stale), &[]);
    assert_eq!(told.len(), AT_ONCE);
    // Those that were never told to be captured; the others wait for their pause.
    let reasons = told.iter().map(|told| told.events[0].reason);
    assert!(reasons.clone().all(|reason| reason == Reason::CaptureStale));
    assert!(told.iter().all(|told| told.pod.name != "p0"), "{told:?}");
}

#[test]
fn a_conflict_is_told_on_the_pods_whose_sidecar_it_is_about() {
    let sidecar = crate::model::ResourceRef {
        kind: "Sidecar",
        namespace: "shop".into(),
        name: "default".into(),
        file: "cluster".into(),
        line: 1,
    };
    let conflict = Diagnostic::new(SEVERAL_SELECTORS, "is not alone").about(sidecar.clone());
    let other = Diagnostic::new(crate::model::catalogue::NO_ENDPOINT, "x").about(sidecar);
    let mut node = Node::starting();
    let mut elsewhere = workload("shop/b", State::Captured, None);
    elsewhere.sidecar = None;
    let workloads = [workload("shop/a", State::Captured, None), elsewhere];
    let told = node.told(&workloads, &[conflict.clone(), other]);
    let [told] = &told[..] else {
        panic!("{told:?}")
    };
    // Also when the agent starts: it is not as it should be.
    let last = told.events.last().unwrap();
    assert_eq!(
        (told.pod.name.as_str(), last.reason),
        ("a", Reason::SidecarConflict)
    );
    assert_eq!(last.note, "Sidecar shop/default (cluster:1) is not alone");
    node.wait(60);
    assert_eq!(node.look_with(&workloads, &[conflict]), [""; 0]);
}

#[test]
fn notes_are_as_long_as_an_api_server_takes() {
    let problem = "ä".repeat(2000);
    let mut node = Node::running();
    let told = node.told(&[workload("shop/a", State::Pending, Some(&problem))], &[]);
    let text = &told[0].events[0].note;
    assert!(text.len() <= NOTE && text.ends_with('…'), "{}", text.len());
    let status = told[0].status.as_deref().unwrap();
    assert!(status.len() <= NOTE, "{}", status.len());
}

/// Events and annotations (`-`: taken away) that are told of one pod.
fn annotated(node: &mut Node, state: Option<State>, shown: Option<&str>) -> Vec<String> {
    let workloads: Vec<_> = state
        .map(|state| {
            workload(
                "shop/a",
                state,
                Some("x").filter(|_| state == State::Pending),
            )
        })
        .into_iter()
        .collect();
    let pods = [("shop/a".to_owned(), pod("shop/a", shown, state.is_none()))].into();
    let told = node.told_of(subjects(&workloads, &[], &pods));
    let of = |told: &Told| {
        let events = told
            .events
            .iter()
            .map(|event| event.reason.name().to_owned());
        let status = told.status.clone().unwrap_or_else(|| "-".into());
        events.chain([status]).collect::<Vec<_>>()
    };
    told.iter().flat_map(of).collect()
}

#[test]
fn what_is_not_captured_any_more_does_not_say_that_it_is() {
    let mut node = Node::running();
    node.news.annotates = true;
    let captured = Some(State::Captured);
    assert_eq!(annotated(&mut node, None, None), [""; 0], "never was");
    assert_eq!(
        annotated(&mut node, captured, None),
        ["Captured", "captured"]
    );
    assert_eq!(
        annotated(&mut node, None, Some("captured")),
        [""; 0],
        "too soon"
    );
    node.wait(60);
    assert_eq!(annotated(&mut node, None, Some("captured")), ["-"]);
    // Until the API server tells so.
    node.wait(60);
    assert_eq!(annotated(&mut node, None, Some("captured")), [""; 0]);
    assert_eq!(annotated(&mut node, None, None), [""; 0]);
    assert_eq!(
        annotated(&mut node, captured, None),
        ["Captured", "captured"]
    );
}

/// An agent before may have left another one.
#[test]
fn the_annotation_is_true_when_the_agent_starts() {
    for (state, shown, expected) in [
        (Some(State::Captured), Some("captured"), None),
        (Some(State::Captured), Some("pending: x"), Some("captured")),
        (Some(State::Captured), None, Some("captured")),
        (Some(State::Off), Some("captured"), Some("off")),
        (None, Some("captured"), Some("-")),
        (None, None, None),
    ] {
        let mut node = Node::starting();
        node.news.annotates = true;
        let told = annotated(&mut node, state, shown);
        let expected: Vec<_> = expected.into_iter().collect();
        assert_eq!(told, expected, "{state:?} {shown:?}");
        // What changes then is told at once.
        let told = annotated(&mut node, Some(State::Pending), shown);
        assert_eq!(told.last().map(String::as_str), Some("pending: x"));
        // Where it is not written, it is nobody's business.
        let mut silent = Node::starting();
        assert_eq!(annotated(&mut silent, state, shown), [""; 0]);
    }
}

/// The rest of many, at the first look.
#[test]
fn an_annotation_that_finds_no_room_at_first_comes_without_an_event() {
    let mut node = Node::starting();
    node.news.annotates = true;
    node.room = 0;
    let captured = Some(State::Captured);
    assert_eq!(annotated(&mut node, captured, None), [""; 0]);
    node.room = 1;
    assert_eq!(annotated(&mut node, captured, None), ["captured"]);
}
