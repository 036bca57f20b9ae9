//! Metrics in the text format of `OpenMetrics`. One table, [`catalogue`], says which there are.

pub mod catalogue;
mod encode;
mod process;

use std::time::Duration;

use prometheus_client::{encoding::text, metrics::histogram::Histogram, registry::Registry};

use self::{encode::Snapshot, process::Figures};
use super::status::Status;

/// Upper bounds of the buckets of durations of applying, in seconds: from a node with nothing to do
/// to one that is in trouble.
const BUCKETS: [f64; 10] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0];

/// What is measured where it happens, and how the rest is told.
#[derive(Debug)]
pub struct Metrics {
    applied: Histogram,
    per_workload: bool,
}

impl Metrics {
    /// Nothing measured yet. `per_workload`: decisions are told by workload, at the price of as many
    /// series for each.
    #[must_use]
    pub fn new(per_workload: bool) -> Self {
        Self {
            applied: Histogram::new(BUCKETS),
            per_workload,
        }
    }

    /// The configuration was applied, and it took this long.
    pub fn applied(&self, took: Duration) {
        self.applied.observe(took.as_secs_f64());
    }

    /// Everything, with this state of the agent.
    #[must_use]
    pub fn render(&self, status: Status) -> String {
        let process = Figures::read()
            .inspect_err(|error| tracing::debug!("reading the process' figures: {error}"))
            .ok();
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Snapshot {
            status,
            applied: self.applied.clone(),
            process,
            per_workload: self.per_workload,
        }));
        let mut page = String::new();
        // Writing to a string cannot fail.
        let _ = text::encode(&mut page, &registry);
        page
    }
}
