//! From what is resolved to what the kernel needs. Pure.
//!
//! The kernel walks a plan's tables in a fixed order and the first hit decides
//! ([`sidecar_common::decide`]); all precedence is settled here.

mod builder;
mod circumstances;
mod digest;
mod egress;
mod egress_proxy;
pub mod in_use;
mod ingress;
pub mod network;
pub mod node;
mod outbound;
pub mod plan;
mod prefixes;
mod proxied;
pub mod tables;

use std::sync::Arc;

pub use network::{Network, NetworkInterface};
pub use node::{Compiler, NodePlan, WorkloadPlan, plan_of, plans, unused_sidecars};
pub use plan::{DeclaredBy, Listener, Outbound, Place, Plan, PlanSize, Target, UnixAddr};
pub(crate) use prefixes::EVERYWHERE;
pub use tables::MemTables;

use crate::{
    model::mesh::MeshConfig,
    resolve::{Finding, Registry, ResolvedWorkload, workload::Proxy},
};

use circumstances::Circumstances;

/// The plan of a workload whose outbound half is compiled, and everything that was found.
fn workload_plan(
    workload: &ResolvedWorkload,
    compiled: &builder::Compiled,
    mesh: &MeshConfig,
    registry: &Registry,
) -> (Plan, Vec<Finding>) {
    let outbound = Arc::clone(&compiled.outbound);
    let mut builder = builder::InboundBuilder::new(&outbound);
    match workload.proxy {
        Proxy::None => ingress::compile(&mut builder, workload, mesh, registry),
        Proxy::External { .. } => proxied::inbound(&mut builder, workload),
    }
    let sidecar = workload
        .sidecar
        .as_ref()
        .map(|sidecar| sidecar.reference("Sidecar"));
    let outbound_findings = compiled.findings.iter().map(|found| Finding {
        resource: found.resource.clone().or_else(|| sidecar.clone()),
        ..found.clone()
    });
    let mut findings: Vec<Finding> = outbound_findings.collect();
    let (plan, found) = builder.finish(outbound, sidecar, Circumstances::of(workload, mesh));
    findings.extend(found);
    (plan, findings)
}

#[cfg(test)]
mod tests;
