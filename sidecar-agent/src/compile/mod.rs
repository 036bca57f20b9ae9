//! From what is resolved to what the kernel needs. Pure.
//!
//! The kernel walks a plan's tables in a fixed order and the first hit decides
//! ([`sidecar_common::decide`]); all precedence is settled here.

mod builder;
mod digest;
mod egress;
mod egress_proxy;
pub mod in_use;
mod ingress;
pub mod node;
pub mod plan;
mod prefixes;
mod proxied;
pub mod tables;

use std::collections::BTreeSet;

pub use node::{NodePlan, WorkloadPlan, plans, unused_sidecars};
pub use plan::{Listener, Plan, PlanSize, Target, UnixAddr};
pub use tables::MemTables;

use crate::{
    model::mesh::MeshConfig,
    resolve::{
        Finding, Registry, ResolvedWorkload, analysis,
        listeners::{self, Context, OutboundListener},
        visibility::{self, VirtualService},
        workload::Proxy,
    },
};

/// What compiling a workload yields.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// What the kernel needs.
    pub plan: Plan,
    /// What was found on the way.
    pub findings: Vec<Finding>,
    /// Host names whose addresses the plan depends on.
    pub dns: BTreeSet<String>,
}

/// Compiles the plan of one workload. `registry` is that of the snapshot the workload comes
/// from.
#[must_use]
pub fn compile(
    workload: &ResolvedWorkload,
    mesh: &MeshConfig,
    registry: &Registry,
    virtual_services: &[VirtualService],
) -> Compiled {
    let mut builder = builder::Builder::default();
    let listeners = egress_listeners(workload, mesh, registry);
    if let Some(sidecar) = &workload.sidecar {
        let found = analysis::egress(sidecar, workload, mesh, registry, &listeners);
        builder.findings.extend(found);
    }
    match workload.proxy {
        Proxy::None => {
            let proxy = egress_proxy::find(workload, registry, virtual_services);
            egress::compile(&mut builder, workload, mesh, &listeners, proxy);
            ingress::compile(&mut builder, workload, mesh, registry);
        }
        Proxy::External { .. } => proxied::compile(&mut builder, workload, mesh, &listeners),
    }
    builder.finish()
}

/// The egress listeners of a workload.
fn egress_listeners<'a>(
    workload: &ResolvedWorkload,
    mesh: &MeshConfig,
    registry: &'a Registry,
) -> Vec<OutboundListener<'a>> {
    let context = Context {
        mesh,
        namespace: &workload.namespace,
        mode: workload.mode(),
        addresses: &workload.addresses,
        // Nothing is bound: direct listeners exist in the kernel's tables only.
        unprivileged: false,
    };
    let egress = visibility::egress(workload.sidecar.as_ref().map(|sidecar| &sidecar.spec));
    listeners::outbound(&context, registry, &egress)
}

#[cfg(test)]
mod tests;
