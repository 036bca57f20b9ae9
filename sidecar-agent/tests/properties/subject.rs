//! What is tested, and nothing else calls it: a changed signature is mended here.

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf};

use proptest::prelude::*;
use sidecar_agent::{
    compile::{self, NodePlan, Plan, Target, WorkloadPlan},
    explain::{self, Connection, Who},
    model::{
        Compat, ResourceRef, Snapshot, decode,
        diagnostic::{Diagnostic, Severity},
        sidecar::EgressListener,
        tree::Source,
    },
    resolve::{
        Registry,
        select::{ProxyType, Sidecars},
        visibility::{self, Features, Selected},
    },
    source::files::{File, Store, Update},
};
use sidecar_common::{Path, Reason, decide::Transport};

use crate::{
    generate::{self, World},
    naive::Call,
};

/// A service as a listener or scope shows it: host name, namespace, resource, ports.
pub type Seen = (String, String, String, Vec<u16>);

/// What becomes of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub path: Path,
    pub reason: Reason,
    /// The service that is reached, where one was chosen.
    pub service: Option<String>,
    pub targets: BTreeSet<String>,
}

/// An agent that is given one state after another.
#[derive(Default)]
pub struct Agent {
    store: Store,
    compiler: compile::Compiler,
}

impl Agent {
    pub fn take(&mut self, world: &World) -> (Snapshot, NodePlan) {
        let order: Vec<usize> = (0..world.documents.len()).collect();
        let mut snapshot = self.store.update(files(world, &order)).snapshot;
        snapshot.dns = world.dns.clone();
        let node = self.compiler.plans(&snapshot);
        (snapshot, node)
    }
}

/// The documents in this order, each a file of its own, named after it.
fn files(world: &World, order: &[usize]) -> Vec<File> {
    let file = |index: &usize| {
        let document = &world.documents[*index];
        let path = PathBuf::from(format!("{}.yaml", generate::id(document)));
        (path, Ok(document.to_string().into()))
    };
    order.iter().map(file).collect()
}

/// Reads the documents in this order.
pub fn load(world: &World, order: &[usize]) -> Update {
    let mut update = Store::default().update(files(world, order));
    update.snapshot.dns = world.dns.clone();
    update
}

/// The world as a snapshot; what is generated must be valid.
pub fn snapshot(world: &World) -> Result<Snapshot, TestCaseError> {
    let order: Vec<usize> = (0..world.documents.len()).collect();
    let Update {
        snapshot,
        diagnostics,
        ..
    } = load(world, &order);
    let error = diagnostics.iter().find(|d| d.severity == Severity::Error);
    prop_assert!(error.is_none(), "generated what is not valid: {error:#?}");
    Ok(snapshot)
}

pub fn plans(snapshot: &Snapshot) -> NodePlan {
    compile::plans(snapshot)
}

/// The name of the Sidecar that applies.
pub fn selected(snapshot: &Snapshot, workload: &WorkloadPlan) -> Option<ResourceRef> {
    Sidecars::new(&snapshot.sidecars, &snapshot.mesh.root_namespace)
        .select(
            ProxyType::Sidecar,
            &workload.workload.namespace,
            &workload.workload.labels,
        )
        .map(|sidecar| sidecar.reference("Sidecar"))
}

/// What each egress listener exposes.
pub fn exposed(snapshot: &Snapshot, namespace: &str, egress: &[EgressListener]) -> Vec<Vec<Seen>> {
    let registry = Registry::new(snapshot);
    egress
        .iter()
        .map(|listener| seen(&visibility::exposed(&registry, namespace, listener)))
        .collect()
}

/// What a namespace sees through these listeners in all.
pub fn scope(snapshot: &Snapshot, namespace: &str, egress: &[EgressListener]) -> Vec<Seen> {
    let registry = Registry::new(snapshot);
    let virtual_services = visibility::virtual_services(snapshot, namespace);
    seen(&visibility::scope(
        &registry,
        namespace,
        egress,
        &virtual_services,
        Features::default(),
    ))
}

fn seen(selected: &[Selected<'_>]) -> Vec<Seen> {
    let seen = |Selected { service, ports }: &Selected<'_>| {
        (
            service.hostname.to_string(),
            service.namespace.to_string(),
            service.name.clone(),
            ports.iter().map(|port| port.number).collect(),
        )
    };
    selected.iter().map(seen).collect()
}

/// The egress listeners in force.
pub fn egress(workload: &WorkloadPlan) -> Vec<EgressListener> {
    let sidecar = workload.workload.sidecar.as_ref();
    visibility::egress(sidecar.map(|sidecar| &sidecar.spec))
}

/// All that a plan says, but for the place in its resource of what declares a listener.
pub fn content(plan: &Plan) -> String {
    let text = format!("{plan:?}");
    let mut content = String::new();
    let mut parts = text.split("gress(");
    content.extend(parts.next());
    for part in parts {
        content.push_str("gress(");
        content.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    content
}

/// Decides a connection by the compiled tables.
pub fn decide(workload: &WorkloadPlan, inbound: bool, src: IpAddr, call: &Call<'_>) -> Outcome {
    let Call { dst, interface, .. } = *call;
    let connection = if inbound {
        Connection {
            interface,
            ..Connection::inbound(Some(src), dst)
        }
    } else {
        Connection {
            transport: if call.udp {
                Transport::Udp
            } else {
                Transport::Tcp
            },
            src: call.src,
            caller: Who::Ids {
                uid: Some(call.uid),
                gid: Some(call.gid),
            },
            interface,
            ..Connection::outbound(dst)
        }
    };
    let explanation = explain::explain(&workload.plan, &workload.workload.addresses, &connection);
    Outcome {
        path: explanation.path,
        reason: explanation.reason,
        service: explanation.service,
        targets: explanation.targets.iter().map(Target::to_string).collect(),
    }
}

/// Reads a text.
pub fn parse(text: &str, compat: Compat) -> Vec<Diagnostic> {
    let source = Source::new("text.yaml", text);
    decode::text_as(&source, compat).diagnostics
}
