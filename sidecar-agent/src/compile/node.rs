//! The plans of all workloads of a node.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use crate::{
    model::{ResourceRef, Snapshot},
    resolve::{
        Finding, Registry, ResolvedWorkload, analysis,
        visibility::{self, VirtualService},
        workload,
    },
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
    /// The `MeshConfig`, if there is one.
    pub mesh: Option<ResourceRef>,
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

/// What `check` says of Sidecars that apply to no workload of the node.
#[must_use]
pub fn unused_sidecars(snapshot: &Snapshot, node: &NodePlan) -> Vec<Finding> {
    let used = node.workloads.iter().map(|known| &known.workload);
    analysis::unused_sidecars(snapshot, &Registry::new(snapshot), used)
}

/// Compiles the plans of all workloads of the node.
#[must_use]
pub fn plans(snapshot: &Snapshot) -> NodePlan {
    let registry = Registry::new(snapshot);
    let (workloads, findings) = workload::workloads(snapshot);
    let mut findings: BTreeSet<Finding> = findings.into_iter().collect();
    findings.extend(analysis::hosts(snapshot, &registry, &workloads));
    let mut virtual_services: HashMap<String, Vec<VirtualService>> = HashMap::new();
    let mut node = NodePlan {
        mesh: snapshot.mesh_origin.clone(),
        ..NodePlan::default()
    };
    let mut known: HashMap<blake3::Hash, Arc<Plan>> = HashMap::new();
    for workload in workloads {
        let virtual_services = virtual_services
            .entry(workload.namespace.clone())
            .or_insert_with(|| visibility::virtual_services(snapshot, &workload.namespace));
        let compiled = compile(&workload, &snapshot.mesh, &registry, virtual_services);
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
