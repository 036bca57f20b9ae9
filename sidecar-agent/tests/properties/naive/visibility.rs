//! Which services an egress listener exposes, and which a namespace sees in all.

use std::collections::{BTreeMap, BTreeSet};

use sidecar_agent::model::{
    Object, Snapshot,
    sidecar::{EgressListener, Sidecar},
    virtual_service::VirtualService,
};

use super::{
    names,
    services::{Port, Protocol, Service, protocol},
};
use crate::subject::Seen;

/// A service with the ports that are exposed of it.
#[derive(Clone, Debug)]
pub struct Exposed<'a> {
    pub service: &'a Service,
    pub ports: Vec<&'a Port>,
}

impl Exposed<'_> {
    pub fn seen(&self) -> Seen {
        (
            self.service.host.clone(),
            self.service.namespace.clone(),
            self.service.name.clone(),
            self.ports.iter().map(|port| port.number).collect(),
        )
    }
}

/// The egress listeners in force.
pub fn egress(sidecar: Option<&Object<Sidecar>>) -> Vec<EgressListener> {
    match sidecar {
        Some(sidecar) if !sidecar.spec.egress.is_empty() => sidecar.spec.egress.clone(),
        _ => vec![EgressListener {
            hosts: vec!["*/*".to_owned()],
            ..EgressListener::default()
        }],
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Visible {
    ByName,
    Publicly,
    Not,
}

/// How a namespace sees what is exported like this.
fn visible(
    export_to: Option<&Vec<String>>,
    default: &[String],
    owner: &str,
    namespace: &str,
) -> Visible {
    let to = match export_to {
        Some(to) if !to.is_empty() => to,
        _ => default,
    };
    let has = |wanted: &str| to.iter().any(|to| to == wanted);
    if has("*") {
        Visible::Publicly
    } else if has("~") {
        Visible::Not
    } else if has(namespace) || (owner == namespace && has(".")) {
        Visible::ByName
    } else {
        Visible::Not
    }
}

fn service_visible(snapshot: &Snapshot, service: &Service, namespace: &str) -> Visible {
    let default = &snapshot.mesh.default_service_export_to;
    visible(
        service.export_to.as_ref(),
        default,
        &service.namespace,
        namespace,
    )
}

/// The services of one listener, in order.
pub fn exposed<'a>(
    snapshot: &Snapshot,
    services: &'a [Service],
    namespace: &str,
    listener: &EgressListener,
) -> Vec<Exposed<'a>> {
    let mut matching: Vec<Exposed<'a>> = Vec::new();
    for kind in [Visible::ByName, Visible::Publicly] {
        for service in services {
            if service_visible(snapshot, service, namespace) == kind
                && names::select(
                    &listener.hosts,
                    namespace,
                    &service.namespace,
                    &service.host,
                )
                && let Some(exposed) = limited(service, listener)
            {
                matching.push(exposed);
            }
        }
    }
    // Services with complete names are looked up one by one; the order is that of all services.
    let by_age = names::complete_only(&listener.hosts, namespace);
    let place = |e: &Exposed<'_>| services.iter().position(|s| std::ptr::eq(s, e.service));
    if by_age {
        matching.sort_by_key(place);
    }
    let all = matching.clone();
    let chosen = |host: &str| {
        let named: Vec<&Exposed<'_>> = all.iter().filter(|e| e.service.host == host).collect();
        let own = named.iter().find(|e| e.service.namespace == namespace);
        let kubernetes = named.iter().find(|e| e.service.kubernetes);
        let best = own.or(kubernetes).or(named.first());
        best.map(|e| e.service.namespace.clone())
    };
    matching.retain(|e| chosen(&e.service.host) == Some(e.service.namespace.clone()));
    matching
}

/// The service with the ports that the listener is limited to.
fn limited<'a>(service: &'a Service, listener: &EgressListener) -> Option<Exposed<'a>> {
    match port_limit(listener) {
        Some(number) => with_ports(service, &|port| u32::from(port.number) == number),
        None => with_ports(service, &|_| true).or(Some(Exposed {
            service,
            ports: Vec::new(),
        })),
    }
}

fn port_limit(listener: &EgressListener) -> Option<u32> {
    let port = listener.port.as_ref()?;
    (port.number != 0 && protocol(&port.protocol) != Protocol::HttpProxy).then_some(port.number)
}

fn with_ports<'a>(service: &'a Service, keep: &dyn Fn(&Port) -> bool) -> Option<Exposed<'a>> {
    let ports: Vec<&Port> = service.ports.iter().filter(|port| keep(port)).collect();
    (!ports.is_empty()).then_some(Exposed { service, ports })
}

/// All services, in order.
pub fn scope<'a>(
    snapshot: &'a Snapshot,
    services: &'a [Service],
    namespace: &str,
    egress: &[EgressListener],
) -> Vec<Exposed<'a>> {
    let mut scope: Vec<Exposed<'a>> = Vec::new();
    for listener in egress {
        for exposed in exposed(snapshot, services, namespace, listener) {
            add(&mut scope, exposed);
        }
        for virtual_service in &snapshot.virtual_services {
            let owner = &virtual_service.meta.namespace;
            let VirtualService {
                hosts,
                gateways,
                export_to,
                ..
            } = &virtual_service.spec;
            let for_mesh = gateways.is_empty() || gateways.iter().any(|gateway| gateway == "mesh");
            let default = &snapshot.mesh.default_virtual_service_export_to;
            let seen = visible(export_to.as_ref(), default, owner, namespace);
            let complete = |host: &String| {
                if host.contains('.') {
                    host.clone()
                } else {
                    format!("{host}.{owner}.svc.{}", snapshot.mesh.cluster_domain)
                }
            };
            let met = hosts
                .iter()
                .any(|host| names::meet(&listener.hosts, namespace, owner, &complete(host)));
            if !for_mesh || seen == Visible::Not || !met {
                continue;
            }
            let mut by_name: BTreeMap<String, Vec<&BTreeSet<u16>>> = BTreeMap::new();
            let destinations = virtual_service.spec.destinations_from(namespace);
            for (host, ports) in &destinations {
                by_name.entry(complete(host)).or_default().push(ports);
            }
            for (host, ports) in by_name {
                // A route without a port means any.
                let all = ports.iter().any(|ports| ports.is_empty());
                let routed = |port: &Port| all || ports.iter().any(|p| p.contains(&port.number));
                let Some(service) = destination(snapshot, services, namespace, &host) else {
                    continue;
                };
                let limited = match port_limit(listener) {
                    Some(_) => limited(service, listener),
                    None => with_ports(service, &routed),
                };
                if let Some(exposed) = limited {
                    add(&mut scope, exposed);
                }
            }
        }
    }
    scope
}

/// The service that a route's host means: one of the namespace itself, whoever it is exported to;
/// else one that is exported to it.
fn destination<'a>(
    snapshot: &Snapshot,
    services: &'a [Service],
    namespace: &str,
    host: &str,
) -> Option<&'a Service> {
    let named = || services.iter().filter(|service| service.host == host);
    let own = || named().filter(|service| service.namespace == namespace);
    let others =
        || named().filter(|service| service_visible(snapshot, service, namespace) != Visible::Not);
    own()
        .find(|service| service.kubernetes)
        .or_else(|| own().next())
        .or_else(|| others().find(|service| service.kubernetes))
        .or_else(|| others().next())
}

fn add<'a>(scope: &mut Vec<Exposed<'a>>, new: Exposed<'a>) {
    let Some(known) = scope
        .iter_mut()
        .find(|known| known.service.host == new.service.host)
    else {
        scope.push(new);
        return;
    };
    let (a, b) = (known.service, new.service);
    if !a.kubernetes && b.kubernetes {
        *known = new;
    } else if a.namespace == b.namespace
        && a.kubernetes == b.kubernetes
        && a.finding == b.finding
        && a.labels == b.labels
        && a.selector == b.selector
        && set(a) == set(b)
    {
        for port in new.ports {
            if !known.ports.iter().any(|known| known.number == port.number) {
                known.ports.push(port);
            }
        }
    }
}

fn set(service: &Service) -> BTreeSet<String> {
    service.export_to.iter().flatten().cloned().collect()
}
