//! How far the configuration is in force, and who is told.

use std::time::Instant;

use super::{node::Node, service::Service, telling::Telling};
use crate::{
    model::{decode::Kind, diagnostic::Severity},
    source::files,
};

/// The configuration on its way into force.
pub struct Progress {
    /// How often a configuration was in force completely, as far as it can be.
    pub generation: u64,
    /// The service, which is told.
    pub service: Service,
    /// Since when the latest one is on its way; `None`: it is in force.
    since: Option<Instant>,
}

impl Progress {
    /// Nothing is in force yet.
    pub fn new() -> Self {
        Self {
            generation: 0,
            service: Service::new(),
            since: None,
        }
    }

    /// A configuration is on its way.
    pub fn begin(&mut self) {
        self.since = Some(Instant::now());
    }

    /// Whether the one that is on its way has just come into force: then that is told, and what
    /// nobody wants by it is let go. `missing`: there are pods that were not found yet.
    pub fn has_settled(
        &mut self,
        node: &mut Node,
        telling: &Telling,
        input: &files::Update,
        missing: bool,
    ) -> bool {
        if !node.is_settled() {
            return false;
        }
        let Some(since) = self.since.take() else {
            return false;
        };
        self.generation += 1;
        let elapsed = since.elapsed();
        telling.metrics.applied(elapsed);
        tracing::info!(
            generation = self.generation,
            ?elapsed,
            "applied the configuration"
        );
        self.tell(node);
        // What nobody claims may be declared in what cannot be understood, or be a pod's whose sandbox
        // only the agent before was told of, and in which nothing runs yet.
        if !missing && !may_hide_workloads(input) {
            node.let_go_unclaimed();
        }
        node.close_unclaimed();
        true
    }

    /// Tells the service how many are captured, once that is known.
    pub fn tell(&mut self, node: &Node) {
        if self.since.is_none() {
            self.service.applied(self.generation, node.captured());
        }
    }
}

/// Whether something that cannot be understood may be a workload. In a large cluster some resource of
/// another kind is always wrong.
fn may_hide_workloads(input: &files::Update) -> bool {
    let workload = Kind::WorkloadEntry.name();
    let mut diagnostics = input.diagnostics.iter();
    diagnostics.any(|diagnostic| {
        let resource = diagnostic.resource.as_ref();
        diagnostic.severity == Severity::Error && resource.is_none_or(|of| of.kind == workload)
    })
}
