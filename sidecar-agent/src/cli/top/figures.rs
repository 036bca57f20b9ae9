//! Rates between two states. Pure.

use std::{cmp::Reverse, collections::BTreeMap, time::Duration};

use sidecar_common::Path;

use super::listeners;
use crate::observe::status::{DecisionCount, State, Status};

/// What is shown.
#[derive(Clone, Debug, PartialEq)]
pub struct Figures {
    /// The agent's version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// How many times the configuration was applied.
    pub generation: u64,
    /// Workloads by state, in the order of `State::ALL`.
    pub states: [usize; State::ALL.len()],
    /// Errors and warnings of the configuration.
    pub findings: u64,
    /// Connections open in the relay.
    pub relayed: u64,
    /// Bytes per second that the relay delivers to targets.
    pub to_target: f64,
    /// Bytes per second that the relay delivers to clients.
    pub to_client: f64,
    /// The busiest first.
    pub rows: Vec<Row>,
    /// Those that relay most first.
    pub listeners: Vec<listeners::Row>,
    /// Listeners that are not listed.
    pub unlisted: usize,
}

/// One workload.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// `namespace/name`.
    pub workload: String,
    /// Its state.
    pub state: State,
    /// Decisions per second, by path, in the order of `Path::ALL`.
    pub rates: [f64; Path::ALL.len()],
    /// Decisions so far.
    pub total: u64,
    /// What is wrong.
    pub problem: String,
}

impl Figures {
    /// What happened between two states of an agent. What counts anew, as it was started meanwhile,
    /// counts from zero.
    #[must_use]
    pub fn new(before: &Status, now: &Status, elapsed: Duration) -> Self {
        let was: BTreeMap<_, _> = before
            .workloads
            .iter()
            .map(|of| (&of.workload, by_path(&of.decisions)))
            .collect();
        let mut rows: Vec<Row> = now
            .workloads
            .iter()
            .map(|of| {
                let counts = by_path(&of.decisions);
                let was = was.get(&of.workload).copied().unwrap_or_default();
                let mut rates = [0.0; Path::ALL.len()];
                for ((rate, now), was) in rates.iter_mut().zip(counts).zip(was) {
                    *rate = per_second(was, now, elapsed);
                }
                Row {
                    workload: of.workload.clone(),
                    state: of.state,
                    rates,
                    total: counts.iter().sum(),
                    problem: of.problem.clone().unwrap_or_default(),
                }
            })
            .collect();
        // Sums of rates are no good keys: of equal ones the workload with more decisions is first.
        rows.sort_by(|a, b| {
            let busy = |of: &Row| of.rates.iter().sum::<f64>();
            busy(b)
                .total_cmp(&busy(a))
                .then_with(|| Reverse(a.total).cmp(&Reverse(b.total)))
                .then_with(|| a.workload.cmp(&b.workload))
        });
        let (relay, was) = (&now.relay, &before.relay);
        Self {
            version: now.version.clone(),
            pid: now.pid,
            generation: now.generation,
            states: State::ALL
                .map(|state| now.workloads.iter().filter(|of| of.state == state).count()),
            findings: now.findings.iter().map(|of| of.count).sum(),
            relayed: relay.active,
            to_target: per_second(was.bytes_to_target, relay.bytes_to_target, elapsed),
            to_client: per_second(was.bytes_to_client, relay.bytes_to_client, elapsed),
            rows,
            listeners: listeners::rows(before, now, elapsed),
            unlisted: now.workloads.iter().map(|of| of.listeners.unlisted).sum(),
        }
    }
}

fn by_path(decisions: &[DecisionCount]) -> [u64; Path::ALL.len()] {
    let mut counts = [0; Path::ALL.len()];
    for (count, path) in counts.iter_mut().zip(Path::ALL) {
        let of_path = decisions.iter().filter(|of| of.path == path.name());
        *count = of_path.map(|of| of.count).sum();
    }
    counts
}

#[allow(
    clippy::cast_precision_loss,
    reason = "a rate is shown with three digits"
)]
pub(super) fn per_second(before: u64, now: u64, elapsed: Duration) -> f64 {
    let more = now.checked_sub(before).unwrap_or(now);
    if elapsed.is_zero() {
        return 0.0;
    }
    more as f64 / elapsed.as_secs_f64()
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::observe::{
        listeners::{ListenerStatus, Listeners, Relayed},
        status::{CaptureBy, CaptureStatus, FindingCount, RelayStatus, WorkloadStatus},
    };

    fn workload(name: &str, state: State, decisions: &[(&str, u64)]) -> WorkloadStatus {
        WorkloadStatus {
            workload: name.into(),
            state,
            capture: CaptureStatus {
                wanted: true,
                by: CaptureBy::Default,
                actual: state != State::Pending,
            },
            problem: (state == State::Pending).then(|| "its cgroup is not there".into()),
            cgroup: String::new(),
            netns: None,
            sidecar: None,
            wanted: String::new(),
            actual: None,
            decisions: decisions
                .iter()
                .map(|(path, count)| DecisionCount {
                    direction: "outbound".into(),
                    path: (*path).into(),
                    reason: "egress-service".into(),
                    count: *count,
                })
                .collect(),
            listeners: Listeners::default(),
        }
    }

    fn listeners(bytes: u64) -> Listeners {
        let listener = |name: &str, path: &str, target: &str| ListenerStatus {
            listener: name.into(),
            paths: vec![path.into()],
            targets: vec![target.into()],
            unlisted_targets: 0,
            service: None,
            relayed: None,
        };
        let direct = ListenerStatus {
            unlisted_targets: 2,
            ..listener("ingress *:9080", "direct", "127.0.0.1:8080")
        };
        let relayed = ListenerStatus {
            service: Some("db.example.com".into()),
            relayed: Some(Relayed {
                active: 3,
                accepted: 10,
                bytes_to_target: bytes,
                bytes_to_client: 2 * bytes,
            }),
            ..listener("egress 127.0.0.1:3306", "relay", "unix:///db.sock")
        };
        Listeners {
            listed: vec![direct, relayed],
            unlisted: 5,
        }
    }

    /// A state with so many decisions of `prod/busy`, and so many bytes relayed.
    pub fn status(decisions: u64, bytes: u64) -> Status {
        Status {
            version: "1.2.3".into(),
            pid: 4321,
            generation: 7,
            findings: vec![FindingCount {
                severity: "warning".into(),
                code: "SCA0001".into(),
                count: 3,
            }],
            workloads: [
                workload("prod/absent", State::Pending, &[]),
                workload("prod/idle", State::Stale, &[("pass", 5000)]),
                workload(
                    "prod/busy",
                    State::Captured,
                    &[("direct", decisions), ("direct", decisions), ("deny", 1)],
                ),
            ]
            .map(|of| WorkloadStatus {
                listeners: if of.workload == "prod/busy" {
                    listeners(bytes)
                } else {
                    Listeners::default()
                },
                ..of
            })
            .into(),
            relay: RelayStatus {
                active: 12,
                bytes_to_target: bytes,
                bytes_to_client: 2 * bytes,
                ..RelayStatus::default()
            },
            ..Status::default()
        }
    }

    #[test]
    fn rates_are_per_second_and_the_busiest_is_first() {
        let figures = Figures::new(&status(10, 0), &status(30, 4096), Duration::from_secs(2));
        let names: Vec<_> = figures.rows.iter().map(|row| &*row.workload).collect();
        assert_eq!(names, ["prod/busy", "prod/idle", "prod/absent"]);
        let busy = &figures.rows[0];
        assert_eq!(
            busy.rates.map(f64::to_bits),
            [0.0, 20.0, 0.0, 0.0, 0.0].map(f64::to_bits)
        );
        assert_eq!(busy.total, 61);
        assert_eq!(figures.states, [1, 1, 0, 1]);
        assert_eq!(figures.findings, 3);
        assert_eq!(figures.to_target.to_bits(), 2048.0_f64.to_bits());
        assert_eq!(figures.to_client.to_bits(), 4096.0_f64.to_bits());
    }

    #[test]
    fn what_counts_anew_counts_from_zero() {
        let figures = Figures::new(&status(1000, 9999), &status(5, 100), Duration::from_secs(1));
        assert_eq!(figures.rows[0].rates[1].to_bits(), 10.0_f64.to_bits());
        assert_eq!(figures.to_target.to_bits(), 100.0_f64.to_bits());
        let at_once = Figures::new(&status(1, 1), &status(2, 2), Duration::ZERO);
        assert_eq!(at_once.to_target.to_bits(), 0.0_f64.to_bits());
    }
}
