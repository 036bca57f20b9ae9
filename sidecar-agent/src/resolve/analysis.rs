//! What is suspicious about a Sidecar in view of the services there are: hosts and ports that
//! match nothing, listeners that hide others, ports that Istio keeps for itself.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use crate::model::{
    Object, ResourceRef, Snapshot,
    mesh::MeshConfig,
    sidecar::{EgressListener, Sidecar},
};

use super::{
    Registry, ResolvedWorkload,
    capture::{self, UNIX_PREFIX},
    finding::{Finding, FindingKind},
    hosts::Hosts,
    listeners::OutboundListener,
    protocol::Protocol,
    visibility,
};

/// How many names a message lists.
const SHOWN: usize = 5;

/// Hosts of egress listeners that select neither a service nor a virtual service, in the
/// namespaces in which each Sidecar applies: its own, and for the mesh's default those of
/// `workloads`.
///
/// Nothing is said where no service is known at all, nor of `*/*`, `./*` and the root
/// namespace's `*`, which are written to be on the safe side; nor of exclusions.
#[must_use]
pub fn hosts(
    snapshot: &Snapshot,
    registry: &Registry,
    workloads: &[ResolvedWorkload],
) -> Vec<Finding> {
    if registry.is_empty() {
        return Vec::new();
    }
    let root = snapshot.mesh.root_namespace.as_str();
    let mut known = HashMap::new();
    let mut findings = Vec::new();
    for sidecar in &snapshot.sidecars {
        let own = sidecar.meta.namespace.as_str();
        let namespaces: BTreeSet<&str> = if own == root && sidecar.spec.selector.is_none() {
            let applies = |workload: &&ResolvedWorkload| {
                workload
                    .sidecar
                    .as_ref()
                    .map(|s| (&s.meta.namespace, &s.meta.name))
                    == Some((&sidecar.meta.namespace, &sidecar.meta.name))
            };
            workloads
                .iter()
                .filter(applies)
                .map(|workload| workload.namespace.as_str())
                .collect()
        } else {
            [own].into()
        };
        for (index, listener) in sidecar.spec.egress.iter().enumerate() {
            for (at, host) in listener.hosts.iter().enumerate() {
                let expected_to_match = !(host.starts_with('~')
                    || host == "*/*"
                    || host == "./*"
                    || host.strip_suffix("/*") == Some(root));
                if !expected_to_match || namespaces.is_empty() {
                    continue;
                }
                let mut selected = false;
                for namespace in &namespaces {
                    selected |= *known
                        .entry((*namespace, host.as_str()))
                        .or_insert_with(|| selects_any(snapshot, registry, namespace, host));
                }
                if !selected {
                    findings.push(Finding {
                        resource: Some(sidecar.reference("Sidecar")),
                        kind: FindingKind::HostMatchesNothing,
                        field: format!("spec.egress[{index}].hosts[{at}]"),
                        message: format!("`{host}` matches no service that workloads here may see"),
                        remedy: "correct the namespace or the name, add the service, or check its \
                                 exportTo"
                            .into(),
                        related: Vec::new(),
                    });
                }
            }
        }
    }
    findings
}

fn selects_any(snapshot: &Snapshot, registry: &Registry, namespace: &str, host: &str) -> bool {
    let hosts = Hosts::parse(&[host.to_owned()], namespace);
    let scope_and_name = host.split_once('/');
    let exact = scope_and_name.filter(|(_, name)| !name.starts_with('*'));
    let any_service = match exact {
        Some((_, name)) => registry.by_hostname(name).any(|(index, service)| {
            hosts.selects(&service.namespace, name) && registry.is_visible(index, namespace)
        }),
        None => registry
            .visible(namespace)
            .any(|(_, service)| hosts.selects(&service.namespace, &service.hostname)),
    };
    any_service
        || visibility::virtual_services(snapshot, namespace)
            .iter()
            .any(|vs| vs.hosts.iter().any(|host| hosts.meets(&vs.namespace, host)))
}

/// What the egress listeners of a Sidecar come to: `listeners` are those that exist because of
/// it in the workload's namespace.
#[must_use]
pub fn egress(
    sidecar: &Object<Sidecar>,
    workload: &ResolvedWorkload,
    mesh: &MeshConfig,
    registry: &Registry,
    listeners: &[OutboundListener<'_>],
) -> Vec<Finding> {
    if registry.is_empty() {
        return Vec::new();
    }
    let resource = sidecar.reference("Sidecar");
    let mut findings = Vec::new();
    for (index, egress) in sidecar.spec.egress.iter().enumerate() {
        let field = format!("spec.egress[{index}]");
        if listeners.iter().any(|listener| listener.egress == index) {
            continue;
        }
        if let Some(port) = reserved(egress, workload, mesh) {
            findings.push(Finding {
                resource: Some(resource.clone()),
                kind: FindingKind::ReservedPort,
                field: format!("{field}.port.number"),
                message: format!(
                    "port {port} on every address is kept for the proxy itself; there will be no \
                     listener"
                ),
                remedy: "use another port, or bind the listener to one address".into(),
                related: Vec::new(),
            });
        } else if let Some(port) = &egress.port {
            findings.push(without_service(&resource, &field, egress, port.number));
        }
    }
    findings.extend(shadowed(&resource, listeners));
    findings
}

/// Port listeners without a service, of Sidecars that apply to no workload of this node. Costs a
/// walk over all services for each such listener, so it is for `check` only.
#[must_use]
pub fn unused_sidecars<'a>(
    snapshot: &Snapshot,
    registry: &Registry,
    workloads: impl Iterator<Item = &'a ResolvedWorkload>,
) -> Vec<Finding> {
    let used: BTreeSet<(&str, &str)> = workloads
        .filter_map(|workload| workload.sidecar.as_ref())
        .map(|sidecar| (sidecar.meta.namespace.as_str(), sidecar.meta.name.as_str()))
        .collect();
    let mut findings = Vec::new();
    for sidecar in &snapshot.sidecars {
        let (namespace, name) = (sidecar.meta.namespace.as_str(), sidecar.meta.name.as_str());
        if registry.is_empty() || used.contains(&(namespace, name)) {
            continue;
        }
        for (index, egress) in sidecar.spec.egress.iter().enumerate() {
            let Some(port) = &egress.port else { continue };
            if visibility::exposed(registry, namespace, egress).is_empty() {
                let resource = sidecar.reference("Sidecar");
                let field = format!("spec.egress[{index}]");
                findings.push(without_service(&resource, &field, egress, port.number));
            }
        }
    }
    findings
}

fn without_service(
    resource: &ResourceRef,
    field: &str,
    egress: &EgressListener,
    port: u32,
) -> Finding {
    let (field, message) = if port == 0 {
        (
            format!("{field}.hosts"),
            format!(
                "no service is selected, so nothing listens on {}",
                egress.bind
            ),
        )
    } else {
        (
            format!("{field}.port.number"),
            format!(
                "no service that the listener's hosts select has TCP port {port}; there will be no \
                 listener, and connections to the port go to unknown destinations"
            ),
        )
    };
    Finding {
        resource: Some(resource.clone()),
        kind: FindingKind::PortMatchesNothing,
        field,
        message,
        remedy: "correct the port (it is the service's port, not its targetPort) or the hosts"
            .into(),
        related: Vec::new(),
    }
}

/// The port of a listener that there is not because the proxy keeps it for itself.
fn reserved(
    egress: &EgressListener,
    workload: &ResolvedWorkload,
    mesh: &MeshConfig,
) -> Option<u16> {
    let port = egress.port.as_ref()?;
    let number = u16::try_from(port.number).ok()?;
    let real = capture::egress_is_real(workload.mode(), egress.capture_mode, &egress.bind);
    let bind: Option<IpAddr> = match egress.bind.parse() {
        Ok(ip) => Some(ip),
        Err(_) if real || egress.bind.starts_with(UNIX_PREFIX) => {
            Some(IpAddr::from([127, 0, 0, 1]))
        }
        Err(_) => None,
    };
    capture::is_reserved(mesh, bind, number, Protocol::parse(&port.protocol)).then_some(number)
}

/// Services of the catch-all that are not reached, because a listener with a port has the
/// address and port they would need.
fn shadowed(resource: &ResourceRef, listeners: &[OutboundListener<'_>]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for listener in listeners {
        let Some((egress, _)) = listener.shadowed.first() else {
            continue;
        };
        let names: BTreeSet<&str> = listener
            .shadowed
            .iter()
            .map(|(_, service)| service.hostname.as_str())
            .collect();
        let more = if names.len() > SHOWN { ", ..." } else { "" };
        let shown: Vec<&str> = names.iter().copied().take(SHOWN).collect();
        findings.push(Finding {
            resource: Some(resource.clone()),
            kind: FindingKind::Shadowed,
            field: format!("spec.egress[{egress}]"),
            message: format!(
                "port {} belongs to spec.egress[{}], which does not expose: {}{more} ({} in all)",
                listener.port,
                listener.egress,
                shown.join(", "),
                names.len()
            ),
            remedy: format!(
                "name the services in spec.egress[{}].hosts, if they are to be reached",
                listener.egress
            ),
            related: Vec::new(),
        });
    }
    findings
}
