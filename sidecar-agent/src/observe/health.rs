//! Whether the agent lives, and whether it is ready: what the main loop last said of itself.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde::Serialize;

/// Written by the main loop, read by whoever asks.
#[derive(Debug)]
pub struct Health {
    started: Instant,
    /// When the loop last turned, in milliseconds after `started`.
    beat: AtomicU64,
    stall_limit: Duration,
    /// Which agent this is, of those that may answer at its address.
    instance: String,
    readiness: Mutex<Readiness>,
}

/// What the agent has done so far of what makes it ready.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// The programs and maps are loaded.
    pub loaded: bool,
    /// The configuration was applied at least once.
    pub applied: bool,
    /// What is too old of what is known, and why.
    pub stale: Option<Pending>,
    /// Workloads for which nothing is in force, and why.
    pub workloads: Vec<Pending>,
}

/// Something that keeps the agent from being ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pending {
    /// What: `agent`, `main loop`, `programs`, `configuration`, `cluster`, or `workload
    /// NAMESPACE/NAME`.
    pub what: String,
    /// Why.
    pub why: String,
}

/// The answer to whether the agent is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether nothing is pending.
    pub ready: bool,
    /// What is.
    pub pending: Vec<Pending>,
}

impl Health {
    /// Of an agent that starts now, and is called `instance`. Its main loop must turn at least once
    /// in `stall_limit`.
    #[must_use]
    pub fn new(stall_limit: Duration, instance: String) -> Self {
        Self {
            started: Instant::now(),
            beat: AtomicU64::new(0),
            stall_limit,
            instance,
            readiness: Mutex::default(),
        }
    }

    /// The main loop turns.
    pub fn beat(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.beat.store(now, Ordering::Relaxed);
    }

    /// How long ago the main loop last turned.
    #[must_use]
    pub fn age(&self) -> Duration {
        let beat = Duration::from_millis(self.beat.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(beat)
    }

    /// Changes what is known of the agent's readiness.
    pub fn update(&self, change: impl FnOnce(&mut Readiness)) {
        change(
            &mut self
                .readiness
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// Whether the main loop turns.
    ///
    /// # Errors
    /// If it has not for too long: what to tell.
    pub fn live(&self) -> Result<(), String> {
        let age = self.age();
        if age > self.stall_limit {
            return Err(format!(
                "the main loop has not turned for {:.1} s; the limit is {:.1} s",
                age.as_secs_f64(),
                self.stall_limit.as_secs_f64()
            ));
        }
        Ok(())
    }

    /// Whether the agent is ready, and what is missing. `asked` is the agent that it is asked of, if
    /// of a certain one: before a hand-over the old one answers at the address of the next one, and
    /// afterwards the next one at that of the old one.
    #[must_use]
    pub fn report(&self, asked: Option<&str>) -> Report {
        let readiness = self
            .readiness
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let pending = |what: &str, why: String| Pending {
            what: what.to_owned(),
            why,
        };
        let is_other = asked.is_some_and(|asked| asked != self.instance);
        let other = || format!("this one is `{}`, and another was asked", self.instance);
        let missing = [
            is_other.then(|| pending("agent", other())),
            self.live().err().map(|why| pending("main loop", why)),
            (!readiness.loaded).then(|| pending("programs", "not loaded yet".into())),
            (!readiness.applied).then(|| pending("configuration", "not applied yet".into())),
        ];
        let pending: Vec<Pending> = missing
            .into_iter()
            .flatten()
            .chain(readiness.stale)
            .chain(readiness.workloads)
            .collect();
        Report {
            ready: pending.is_empty(),
            pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_only_when_nothing_is_pending() {
        let health = Health::new(Duration::from_mins(1), "one".into());
        let what = |health: &Health| -> Vec<String> {
            let report = health.report(Some("one"));
            assert_eq!(report.ready, report.pending.is_empty());
            report.pending.into_iter().map(|of| of.what).collect()
        };
        assert_eq!(what(&health), ["programs", "configuration"]);
        health.update(|readiness| readiness.loaded = true);
        assert_eq!(what(&health), ["configuration"]);
        health.update(|readiness| {
            readiness.applied = true;
            readiness.workloads = vec![Pending {
                what: "workload a/b".into(),
                why: "no cgroup".into(),
            }];
        });
        assert_eq!(what(&health), ["workload a/b"]);
        health.update(|readiness| readiness.workloads.clear());
        assert_eq!(what(&health), [""; 0]);
        assert!(health.report(None).ready);
        let other = health.report(Some("two"));
        assert!(!other.ready);
        assert_eq!(other.pending[0].what, "agent");
    }

    #[test]
    fn a_loop_that_does_not_turn_is_neither_live_nor_ready() {
        let health = Health::new(Duration::ZERO, String::new());
        health.update(|readiness| {
            readiness.loaded = true;
            readiness.applied = true;
        });
        while health.age() == Duration::ZERO {
            std::thread::yield_now();
        }
        let why = health.live().unwrap_err();
        assert!(why.contains("has not turned for"), "{why}");
        assert_eq!(health.report(None).pending[0].what, "main loop");
    }
}
