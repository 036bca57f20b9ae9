//! The plans of all workloads of a node.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use crate::{
    model::Snapshot,
    resolve::{Finding, Registry, ResolvedWorkload, workload},
};

use super::{Compiled, compile, plan::Plan};

/// What the kernel of this node needs.
#[derive(Clone, Debug, Default)]
pub struct NodePlan {
    /// The workloads, in the snapshot's order.
    pub workloads: Vec<WorkloadPlan>,
    /// What was found, sorted, each once.
    pub findings: Vec<Finding>,
    /// Host names whose addresses the plans depend on.
    pub dns: BTreeSet<String>,
}

/// A workload and its plan. Workloads with equal plans share one.
#[derive(Clone, Debug)]
pub struct WorkloadPlan {
    /// The workload.
    pub workload: ResolvedWorkload,
    /// Its plan.
    pub plan: Arc<Plan>,
    /// The plan's digest.
    pub digest: blake3::Hash,
}

/// Compiles the plans of all workloads of the node.
#[must_use]
pub fn plans(snapshot: &Snapshot) -> NodePlan {
    let registry = Registry::new(snapshot);
    let (workloads, findings) = workload::workloads(snapshot);
    let mut findings: BTreeSet<Finding> = findings.into_iter().collect();
    let mut node = NodePlan::default();
    let mut known: HashMap<blake3::Hash, Arc<Plan>> = HashMap::new();
    for workload in workloads {
        let compiled = compile(&workload, &snapshot.mesh, &registry);
        let Compiled {
            plan,
            findings: found,
            dns,
        } = compiled;
        let digest = plan.digest();
        let plan = Arc::clone(known.entry(digest).or_insert_with(|| Arc::new(plan)));
        findings.extend(found);
        node.dns.extend(dns);
        node.workloads.push(WorkloadPlan {
            workload,
            plan,
            digest,
        });
    }
    node.findings = findings.into_iter().collect();
    node
}
