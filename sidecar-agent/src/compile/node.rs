//! The plans of all workloads of a node.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use foldhash::fast::RandomState;

use crate::{
    model::{
        Object, ResourceRef, Snapshot, mesh::MeshConfig, snapshot, virtual_service::VirtualService,
    },
    resolve::{
        Finding, Registry, ResolvedWorkload,
        analysis::{self, HostMatches},
        registry, workload,
    },
};

use super::{
    builder::Compiled,
    outbound::{self, Inputs, Interest},
    plan::{Outbound, Plan},
    workload_plan,
};

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
    Compiler::default().plans(snapshot)
}

/// The plan of one workload by itself.
#[must_use]
pub fn plan_of(
    workload: ResolvedWorkload,
    snapshot: &Snapshot,
    registry: &Registry,
) -> WorkloadPlan {
    let inputs = Inputs::of(&workload, registry);
    let compiled = outbound::compile(&inputs, snapshot, registry);
    let (plan, _) = workload_plan(&workload, &compiled, &snapshot.mesh, registry);
    WorkloadPlan {
        digest: plan.digest(),
        plan: Arc::new(plan),
        workload,
    }
}

/// Compiles one snapshot after another. What a change does not concern is not compiled again; the
/// result is the same as that of [`plans`].
#[derive(Debug, Default)]
pub struct Compiler {
    registry: registry::Source,
    mesh: MeshConfig,
    virtual_services: Vec<Arc<Object<VirtualService>>>,
    outbound: HashMap<Inputs, Known, RandomState>,
    host_matches: HostMatches,
}

/// More changed services than this, as after an edit that moves the lines of a large file: to find
/// out what each of them concerns would take longer than to compile everything.
const MANY: usize = 256;

/// An outbound half, and what it has to do with.
#[derive(Debug)]
struct Known {
    interest: Interest,
    compiled: Arc<Compiled>,
}

impl Compiler {
    /// Compiles the plans of all workloads of the node.
    #[must_use]
    pub fn plans(&mut self, snapshot: &Snapshot) -> NodePlan {
        self.forget_what_changed(snapshot);
        let registry = self.registry.registry();
        let (workloads, findings) = workload::workloads(snapshot);
        let mut findings: BTreeSet<Finding> = findings.into_iter().collect();
        findings.extend(self.host_matches.findings(snapshot, registry, &workloads));
        let mut node = NodePlan {
            mesh: snapshot.mesh_origin.clone(),
            ..NodePlan::default()
        };
        let mut before = std::mem::take(&mut self.outbound);
        // Plans of one digest may differ in where their listeners were written.
        let mut shared: HashMap<(blake3::Hash, *const Outbound), Arc<Plan>> = HashMap::new();
        for workload in workloads {
            let inputs = Inputs::of(&workload, registry);
            let compiled = if let Some(known) = self.outbound.get(&inputs) {
                Arc::clone(&known.compiled)
            } else {
                let (inputs, known) = before.remove_entry(&inputs).unwrap_or_else(|| {
                    let compiled = outbound::compile(&inputs, snapshot, registry);
                    let known = Known {
                        interest: inputs.interest(),
                        compiled: Arc::new(compiled),
                    };
                    (inputs, known)
                });
                node.dns.extend(known.compiled.dns.iter().cloned());
                Arc::clone(&self.outbound.entry(inputs).or_insert(known).compiled)
            };
            let (plan, found) = workload_plan(&workload, &compiled, &snapshot.mesh, registry);
            let digest = plan.digest();
            let same = (digest, Arc::as_ptr(&plan.outbound));
            let plan = Arc::clone(shared.entry(same).or_insert_with(|| Arc::new(plan)));
            findings.extend(found);
            node.workloads.push(WorkloadPlan {
                workload,
                plan,
                digest,
            });
        }
        node.findings = findings.into_iter().collect();
        node
    }

    /// Takes in what changed, and forgets what depends on it.
    fn forget_what_changed(&mut self, snapshot: &Snapshot) {
        let was_empty = self.registry.registry().is_empty();
        let changed = self.registry.update(snapshot);
        let registry = self.registry.registry();
        let everything = changed.len() > MANY
            || self.mesh != snapshot.mesh
            || was_empty != registry.is_empty()
            || !snapshot::same(self.virtual_services.iter(), &snapshot.virtual_services);
        if everything {
            self.mesh = snapshot.mesh.clone();
            self.virtual_services.clone_from(&snapshot.virtual_services);
            self.outbound.clear();
            self.host_matches.clear();
            return;
        }
        for service in &changed {
            self.host_matches.forget(service);
        }
        let concerns = |interest: &Interest| {
            let mut changed = changed.iter();
            changed.any(|service| interest.covers(registry, service))
        };
        self.outbound.retain(|_, known| !concerns(&known.interest));
    }
}
