//! What is suspicious about a Sidecar in view of the services there are: hosts and ports that
//! match nothing, listeners that hide others, ports that Istio keeps for itself.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use crate::model::{
    Object, ResourceRef, Snapshot,
    sidecar::{EgressListener, Sidecar},
};

use super::{
    Registry, ResolvedWorkload,
    capture::{self, UNIX_PREFIX},
    finding::{Finding, FindingKind},
    hosts::Hosts,
    listeners::{Context, OutboundListener},
    protocol::Protocol,
    registry::Service,
    visibility,
};

/// How many names a message lists.
const SHOWN: usize = 5;

/// Hosts of egress listeners and whether they select anything, remembered from one snapshot to the
/// next.
#[derive(Debug, Default)]
pub struct HostMatches {
    /// By namespace of the workload, and host as written.
    known: HashMap<String, HashMap<String, bool>>,
}

impl HostMatches {
    /// Forgets what another version of this service, or its absence, could change.
    pub fn forget(&mut self, service: &Service) {
        for (namespace, hosts) in &mut self.known {
            let in_scope = |host: &str| {
                let scope = host.split_once('/').map(|(scope, _)| scope);
                scope.is_some_and(|scope| ["*", ".", &*service.namespace].contains(&scope))
            };
            hosts.retain(|host, _| {
                !in_scope(host)
                    || !Hosts::parse(std::slice::from_ref(host), namespace)
                        .selects(&service.namespace, &service.hostname)
            });
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.known.clear();
    }

    /// Hosts of egress listeners that select neither a service nor a virtual service, in the
    /// namespaces in which each Sidecar applies: its own, and for the mesh's default those of
    /// `workloads`.
    ///
    /// Nothing is said where no service is known at all, nor of `*/*`, `./*` and the root
    /// namespace's `*`, which are written to be on the safe side; nor of exclusions.
    #[must_use]
    pub fn findings(
        &mut self,
        snapshot: &Snapshot,
        registry: &Registry,
        workloads: &[ResolvedWorkload],
    ) -> Vec<Finding> {
        let mut before = std::mem::take(&mut self.known);
        if registry.is_empty() {
            return Vec::new();
        }
        let root = snapshot.mesh.root_namespace.as_str();
        let mut findings = Vec::new();
        for sidecar in &snapshot.sidecars {
            let namespaces = applies_in(sidecar, root, workloads);
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
                        selected |= self.matches(namespace, host, &mut before, || {
                            selects_any(snapshot, registry, namespace, host)
                        });
                    }
                    if !selected {
                        findings.push(matches_nothing(sidecar, index, at, host));
                    }
                }
            }
        }
        findings
    }

    /// What is known of a host from this snapshot, or from the one before, or is found out.
    fn matches(
        &mut self,
        namespace: &str,
        host: &str,
        before: &mut HashMap<String, HashMap<String, bool>>,
        find: impl FnOnce() -> bool,
    ) -> bool {
        if let Some(known) = self.known.get(namespace).and_then(|hosts| hosts.get(host)) {
            return *known;
        }
        let of_before = before
            .get_mut(namespace)
            .and_then(|hosts| hosts.remove_entry(host));
        let (host, selects) = of_before.unwrap_or_else(|| (host.to_owned(), find()));
        if let Some(hosts) = self.known.get_mut(namespace) {
            hosts.insert(host, selects);
        } else {
            let hosts = HashMap::from([(host, selects)]);
            self.known.insert(namespace.to_owned(), hosts);
        }
        selects
    }
}

/// The namespaces of the workloads that a Sidecar applies to, or may apply to.
fn applies_in<'a>(
    sidecar: &'a Object<Sidecar>,
    root: &str,
    workloads: &'a [ResolvedWorkload],
) -> BTreeSet<&'a str> {
    let own = sidecar.meta.namespace.as_str();
    if own != root || sidecar.spec.selector.is_some() {
        return [own].into();
    }
    workloads
        .iter()
        .filter(|workload| {
            workload.sidecar.as_ref().is_some_and(|applies| {
                applies.meta.namespace == sidecar.meta.namespace
                    && applies.meta.name == sidecar.meta.name
            })
        })
        .map(|workload| workload.namespace.as_str())
        .collect()
}

fn matches_nothing(sidecar: &Object<Sidecar>, index: usize, at: usize, host: &str) -> Finding {
    Finding {
        resource: Some(sidecar.reference("Sidecar")),
        kind: FindingKind::HostMatchesNothing,
        field: format!("spec.egress[{index}].hosts[{at}]"),
        message: format!("`{host}` matches no service that workloads here may see"),
        remedy: "correct the namespace or the name, add the service, or check its exportTo".into(),
        related: Vec::new(),
    }
}

fn selects_any(snapshot: &Snapshot, registry: &Registry, namespace: &str, host: &str) -> bool {
    let hosts = Hosts::parse(&[host.to_owned()], namespace);
    let scope_and_name = host.split_once('/');
    let exact = scope_and_name.filter(|(_, name)| !name.starts_with('*'));
    let any_service = match exact {
        Some((_, name)) => registry.by_hostname(name).any(|(position, service)| {
            hosts.selects(&service.namespace, name) && registry.is_visible(position, namespace)
        }),
        None => registry
            .visible(namespace, hosts.scopes().as_deref())
            .any(|(_, service)| hosts.selects(&service.namespace, &service.hostname)),
    };
    any_service || visibility::selects_virtual_service(snapshot, namespace, &hosts)
}

/// What the egress listeners of a Sidecar come to: `listeners` are those that exist because of
/// `egress` in the context of a workload. The resource is left out of the findings: it is the
/// Sidecar.
#[must_use]
pub fn egress(
    context: &Context<'_>,
    registry: &Registry,
    egress: &[EgressListener],
    listeners: &[OutboundListener<'_>],
) -> Vec<Finding> {
    if registry.is_empty() {
        return Vec::new();
    }
    let mut findings = Vec::new();
    let present: BTreeSet<usize> = listeners.iter().map(|listener| listener.egress).collect();
    for (index, egress) in egress.iter().enumerate() {
        let field = format!("spec.egress[{index}]");
        if present.contains(&index) {
            continue;
        }
        if let Some(port) = reserved(egress, context) {
            findings.push(Finding {
                resource: None,
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
            findings.push(without_service(None, &field, egress, port.number));
        }
    }
    findings.extend(shadowed(listeners));
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
                let resource = Some(sidecar.reference("Sidecar"));
                let field = format!("spec.egress[{index}]");
                findings.push(without_service(resource, &field, egress, port.number));
            }
        }
    }
    findings
}

fn without_service(
    resource: Option<ResourceRef>,
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
        resource,
        kind: FindingKind::PortMatchesNothing,
        field,
        message,
        remedy: "correct the port (it is the service's port, not its targetPort) or the hosts"
            .into(),
        related: Vec::new(),
    }
}

/// The port of a listener that there is not because the proxy keeps it for itself.
fn reserved(egress: &EgressListener, context: &Context<'_>) -> Option<u16> {
    let port = egress.port.as_ref()?;
    let number = u16::try_from(port.number).ok()?;
    let real = capture::egress_is_real(context.mode, egress.capture_mode, &egress.bind);
    let bind = match egress.bind_ip() {
        None if real || egress.bind.starts_with(UNIX_PREFIX) => Some(IpAddr::from([127, 0, 0, 1])),
        ip => ip,
    };
    capture::is_reserved(context.mesh, bind, number, Protocol::parse(&port.protocol))
        .then_some(number)
}

/// Services of the catch-all that are not reached, because a listener with a port has the
/// address and port they would need.
fn shadowed(listeners: &[OutboundListener<'_>]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for listener in listeners {
        let Some((egress, _)) = listener.shadowed.first() else {
            continue;
        };
        let names: BTreeSet<&str> = listener
            .shadowed
            .iter()
            .map(|(_, service)| &*service.hostname)
            .collect();
        let more = if names.len() > SHOWN { ", ..." } else { "" };
        let shown: Vec<&str> = names.iter().copied().take(SHOWN).collect();
        findings.push(Finding {
            resource: None,
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
