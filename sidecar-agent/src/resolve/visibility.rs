//! Which services an egress listener exposes, and which services a workload sees in all.
//!
//! Istio (`sidecar.go`): `exportTo` first; then the hosts of each listener; services of one host
//! name from several namespaces leave one namespace per listener; across listeners the first
//! stays, and what can be merged is merged.

use std::collections::{BTreeSet, HashMap};

use smallvec::SmallVec;

use crate::model::{
    Object, Snapshot,
    sidecar::{EgressListener, Sidecar},
    virtual_service::{self, Destinations},
};

use super::{
    hosts::Hosts,
    protocol::Protocol,
    registry::{Port, Provider, Registry, Service},
};

/// A service as one listener, or the whole scope, exposes it: some of its ports, perhaps with
/// those of services that were merged into it.
#[derive(Clone, Debug)]
pub struct Selected<'a> {
    /// The service.
    pub service: &'a Service,
    /// The exposed ports.
    pub ports: SmallVec<[&'a Port; 2]>,
}

/// The part of a `VirtualService` that decides which services are seen.
#[derive(Clone, Debug, Default)]
pub struct VirtualService {
    /// Its namespace.
    pub namespace: String,
    /// `hosts`, as complete names.
    pub hosts: Vec<String>,
    /// Destinations of its routes and mirrors: host name to ports; no ports: all.
    pub destinations: Destinations,
}

/// The virtual services that hold for sidecars in `namespace`, oldest first, with complete names.
#[must_use]
pub fn virtual_services(snapshot: &Snapshot, namespace: &str) -> Vec<VirtualService> {
    let complete = |host: &str, own: &str| complete(host, own, &snapshot.mesh.cluster_domain);
    holding_for(snapshot, namespace)
        .map(|object| {
            let own = object.meta.namespace.as_str();
            let hosts = object.spec.hosts.iter();
            let written = object.spec.destinations_from(namespace).into_iter();
            // A short name and a full one may be the same service.
            let mut destinations = Destinations::new();
            let completed = written.map(|(host, ports)| (complete(&host, own), ports));
            virtual_service::merge(&mut destinations, completed);
            VirtualService {
                namespace: own.to_owned(),
                hosts: hosts.map(|host| complete(host, own)).collect(),
                destinations,
            }
        })
        .collect()
}

/// Whether one of the virtual services that hold for sidecars in `namespace` is selected by these
/// hosts.
#[must_use]
pub fn selects_virtual_service(snapshot: &Snapshot, namespace: &str, hosts: &Hosts) -> bool {
    holding_for(snapshot, namespace).any(|object| {
        let own = object.meta.namespace.as_str();
        let mut names = object.spec.hosts.iter();
        names.any(|host| hosts.meets(own, &complete(host, own, &snapshot.mesh.cluster_domain)))
    })
}

/// The virtual services that hold for sidecars in `namespace`, oldest first.
fn holding_for<'a>(
    snapshot: &'a Snapshot,
    namespace: &'a str,
) -> impl Iterator<Item = &'a Object<virtual_service::VirtualService>> {
    let all = snapshot.virtual_services.iter().map(|object| &**object);
    all.filter(move |object| {
        let own = object.meta.namespace.as_str();
        let export_to = match object.spec.export_to.as_deref() {
            None | Some([]) => &snapshot.mesh.default_virtual_service_export_to,
            Some(named) => named,
        };
        let has = |name: &str| export_to.iter().any(|to| to == name);
        let named = || has(namespace) || own == namespace && has(".");
        // As in Istio, `*` outweighs `~`, and `~` outweighs names.
        object.spec.is_for_mesh() && (has("*") || !has("~") && named())
    })
}

/// A short name is a service's of the virtual service's own namespace.
fn complete(host: &str, namespace: &str, domain: &str) -> String {
    if host.contains(['.', '*']) {
        host.to_owned()
    } else {
        format!("{host}.{namespace}.svc.{domain}")
    }
}

/// Choices of Istio's control plane that decide which services are seen.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// `PILOT_SIDECAR_PICK_BEST_SERVICE_NAMESPACE`: among namespaces that have a virtual
    /// service's destination, prefer Kubernetes, then age; else the alphabet.
    pub pick_best_namespace: bool,
}

impl Default for Features {
    fn default() -> Self {
        Self {
            pick_best_namespace: true,
        }
    }
}

/// The egress listeners in force: those of the Sidecar, or one with hosts `*/*`.
#[must_use]
pub fn egress(sidecar: Option<&Sidecar>) -> Vec<EgressListener> {
    match sidecar {
        Some(sidecar) if !sidecar.egress.is_empty() => sidecar.egress.clone(),
        _ => vec![EgressListener {
            hosts: vec!["*/*".into()],
            ..EgressListener::default()
        }],
    }
}

/// The services one egress listener exposes to workloads of `namespace`, in Istio's order.
#[must_use]
pub fn exposed<'a>(
    registry: &'a Registry,
    namespace: &str,
    listener: &EgressListener,
) -> Vec<Selected<'a>> {
    let hosts = Hosts::parse(&listener.hosts, namespace);
    let port = port_filter(listener);
    let mut candidates: Vec<(usize, Selected<'a>)> = registry
        .visible(namespace, hosts.scopes().as_deref())
        .filter(|(_, service)| hosts.selects(&service.namespace, &service.hostname))
        .filter_map(|(position, service)| Some((position, trim(service, port)?)))
        .collect();
    if hosts.exact_only() {
        // Istio looks complete names up one by one, in the registry's order.
        candidates.sort_by_key(|(position, _)| *position);
    }

    // One namespace per host name: the workload's own, else Kubernetes', else the first.
    let mut winners: HashMap<&str, &Service> = HashMap::new();
    for (position, Selected { service, .. }) in &candidates {
        if !registry.shares_name(*position) {
            continue;
        }
        winners
            .entry(&service.hostname)
            .and_modify(|winner| {
                let better = *service.namespace == *namespace
                    || service.provider == Provider::Kubernetes
                        && winner.provider != Provider::Kubernetes;
                if *winner.namespace != *namespace && better {
                    *winner = service;
                }
            })
            .or_insert(service);
    }
    if !winners.is_empty() {
        candidates.retain(|(_, Selected { service, .. })| {
            winners
                .get(&*service.hostname)
                .is_none_or(|winner| winner.namespace == service.namespace)
        });
    }
    candidates
        .into_iter()
        .map(|(_, selected)| selected)
        .collect()
}

/// The services a workload sees in all: the union over its listeners, and the destinations of
/// virtual services that the listeners select.
#[must_use]
pub fn scope<'a>(
    registry: &'a Registry,
    namespace: &str,
    egress: &[EgressListener],
    virtual_services: &[VirtualService],
    features: Features,
) -> Vec<Selected<'a>> {
    let mut scope = Scope::default();
    for listener in egress {
        for selected in exposed(registry, namespace, listener) {
            scope.add(selected);
        }
        let hosts = Hosts::parse(&listener.hosts, namespace);
        let listener_port = port_filter(listener);
        let selected = virtual_services
            .iter()
            .filter(|vs| vs.hosts.iter().any(|host| hosts.meets(&vs.namespace, host)));
        for (hostname, ports) in selected.flat_map(|vs| &vs.destinations) {
            let Some(service) = destination(registry, namespace, hostname, features) else {
                continue;
            };
            let trimmed = match listener_port {
                Some(_) => trim(service, listener_port),
                // A service without ports stays: nothing of it is left out.
                None if ports.is_empty() || service.ports.is_empty() => trim(service, None),
                None => trim_to(service, |port| ports.contains(&port.number)),
            };
            if let Some(selected) = trimmed {
                scope.add(selected);
            }
        }
    }
    scope.services
}

/// The port a listener is limited to. `HTTP_PROXY` and unix sockets are limited to none.
fn port_filter(listener: &EgressListener) -> Option<u32> {
    listener
        .port
        .as_ref()
        .filter(|port| port.number != 0 && Protocol::parse(&port.protocol) != Protocol::HttpProxy)
        .map(|port| port.number)
}

fn trim(service: &Service, port: Option<u32>) -> Option<Selected<'_>> {
    match port {
        Some(number) => trim_to(service, |port| u32::from(port.number) == number),
        None => Some(Selected {
            service,
            ports: service.ports.iter().collect(),
        }),
    }
}

fn trim_to(service: &Service, keep: impl Fn(&Port) -> bool) -> Option<Selected<'_>> {
    let ports: SmallVec<[&Port; 2]> = service.ports.iter().filter(|port| keep(port)).collect();
    (!ports.is_empty()).then_some(Selected { service, ports })
}

/// The service a virtual service's destination means: that of the workload's own namespace,
/// else the best visible one.
fn destination<'a>(
    registry: &'a Registry,
    namespace: &str,
    hostname: &str,
    features: Features,
) -> Option<&'a Service> {
    // The order of the registry breaks ties: the oldest.
    let candidates = || registry.by_hostname(hostname);
    let own = candidates()
        .filter(|(_, service)| *service.namespace == *namespace)
        .min_by_key(|(index, service)| (service.provider, *index));
    if let Some((_, own)) = own {
        return Some(own);
    }
    let visible = candidates().filter(|(index, _)| registry.is_visible(*index, namespace));
    let best = if features.pick_best_namespace {
        visible.min_by_key(|(index, service)| (service.provider, *index))
    } else {
        visible.min_by_key(|(index, service)| (&service.namespace, *index))
    };
    best.map(|(_, service)| service)
}

#[derive(Default)]
struct Scope<'a> {
    services: Vec<Selected<'a>>,
    by_hostname: HashMap<&'a str, usize>,
}

impl<'a> Scope<'a> {
    fn add(&mut self, new: Selected<'a>) {
        let at = self.by_hostname.get(&*new.service.hostname).copied();
        let Some(known) = at.and_then(|at| self.services.get_mut(at)) else {
            self.by_hostname
                .insert(&new.service.hostname, self.services.len());
            self.services.push(new);
            return;
        };
        if known.service.provider != Provider::Kubernetes
            && new.service.provider == Provider::Kubernetes
        {
            // A Kubernetes service cannot be taken over by somebody's entry of its name.
            *known = new;
        } else if mergeable(known.service, new.service) {
            let ports: BTreeSet<u16> = known.ports.iter().map(|port| port.number).collect();
            known.ports.extend(
                new.ports
                    .iter()
                    .copied()
                    .filter(|port| !ports.contains(&port.number)),
            );
        }
    }
}

/// Whether two services of one host name are parts of one (Istio: `canMergeServices`).
fn mergeable(a: &Service, b: &Service) -> bool {
    a.namespace == b.namespace
        && a.provider == b.provider
        && a.discovery == b.discovery
        && a.labels == b.labels
        && a.selector == b.selector
        && a.export_to == b.export_to
}
