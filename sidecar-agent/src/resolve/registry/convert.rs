//! From a resource to the services it declares.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;

use crate::{
    compile::plan::{Target, UnixAddr},
    model::{
        Object, ResourceRef,
        endpoints::Endpoints,
        service::{self, TargetPort},
        service_entry::{Resolution, ServiceEntry},
        snapshot::same,
        validate::syntax,
        workload::WorkloadEntry,
    },
    resolve::protocol::Protocol,
};

use super::service::{Discovery, Port, Provider, Service};

/// What resources are converted with, besides the workloads they select.
pub(super) struct Environment<'a> {
    /// The cluster's DNS suffix.
    pub cluster_domain: &'a str,
    /// What host names resolve to.
    pub dns: &'a BTreeMap<String, BTreeSet<IpAddr>>,
}

/// What tells where the endpoints of a resource are.
#[derive(Debug, Default)]
pub(super) struct Selected {
    /// The workloads it selects.
    pub workloads: Vec<Arc<Object<WorkloadEntry>>>,
    /// What the cluster says of them.
    pub endpoints: Vec<Arc<Object<Endpoints>>>,
}

impl Selected {
    /// Whether both are made of the same allocations.
    pub fn is(&self, other: &Self) -> bool {
        same(self.workloads.iter(), &other.workloads)
            && same(self.endpoints.iter(), &other.endpoints)
    }
}

impl Environment<'_> {
    /// The service that a Kubernetes `Service` is.
    pub fn kubernetes(&self, object: &Object<service::Service>, selected: &Selected) -> Service {
        let Object { meta, spec, .. } = object;
        let external: Vec<String> = spec.external_name.iter().cloned().collect();
        let ports = spec.ports.iter().map(|port| {
            let protocol = Protocol::of_service_port(
                &port.name,
                port.app_protocol.as_deref(),
                &port.transport,
                port.port,
            );
            let mut endpoints: Vec<Target> = selected
                .workloads
                .iter()
                .filter_map(|entry| {
                    let number = match &port.target {
                        TargetPort::Number(0) => port.port,
                        TargetPort::Number(number) => *number,
                        TargetPort::Name(name) => *entry.spec.ports.get(name)?,
                    };
                    Some(Target::Tcp(SocketAddr::new(
                        ip(&entry.spec.address)?,
                        number,
                    )))
                })
                .collect();
            let told = selected.endpoints.iter();
            let told = told.flat_map(|of| of.spec.of_port(&port.name));
            endpoints.extend(told.map(|(ip, number)| Target::Tcp(SocketAddr::new(ip, number))));
            let resolved = external.iter().flat_map(|name| self.resolved(name));
            endpoints.extend(resolved.map(|ip| Target::Tcp(SocketAddr::new(ip, port.port))));
            Port {
                number: port.port,
                name: port.name.clone(),
                protocol,
                target: port.target.clone(),
                endpoints: sorted(endpoints).into(),
            }
        });
        let Environment { cluster_domain, .. } = self;
        Service {
            hostname: format!("{}.{}.svc.{cluster_domain}", meta.name, meta.namespace).into(),
            namespace: meta.namespace.as_str().into(),
            name: meta.name.clone(),
            created: meta.created,
            provider: Provider::Kubernetes,
            discovery: if spec.external_name.is_some() {
                Discovery::Dns
            } else if spec.headless {
                Discovery::Passthrough
            } else {
                Discovery::Listed
            },
            vips: spec
                .cluster_ips
                .iter()
                .map(|ip| IpNet::from(ip.to_canonical()))
                .collect(),
            ports: ports.collect(),
            export_to: spec.export_to.iter().flatten().cloned().collect(),
            labels: meta.labels.clone(),
            selector: spec.effective_selector().cloned().unwrap_or_default(),
            dns: external,
            origin: Some(Arc::new(object.reference("Service"))),
        }
    }

    /// The services of a `ServiceEntry`: one for each host.
    pub fn external<'s>(
        &'s self,
        object: &'s Object<ServiceEntry>,
        selected: &'s Selected,
    ) -> impl Iterator<Item = Service> + 's {
        let origin = Arc::new(object.reference("ServiceEntry"));
        object
            .spec
            .hosts
            .iter()
            .map(move |host| self.external_host(object, host, selected, &origin))
    }

    fn external_host(
        &self,
        object: &Object<ServiceEntry>,
        host: &str,
        selected: &Selected,
        origin: &Arc<ResourceRef>,
    ) -> Service {
        let Object { meta, spec, .. } = object;
        let discovery = match spec.resolution {
            Resolution::None => Discovery::Passthrough,
            Resolution::Static => Discovery::Listed,
            Resolution::Dns => Discovery::Dns,
            Resolution::DnsRoundRobin => Discovery::DnsRoundRobin,
        };
        let by_name = matches!(discovery, Discovery::Dns | Discovery::DnsRoundRobin);
        // With resolution DNS and no endpoints, the host itself is the endpoint.
        let itself = WorkloadEntry {
            address: host.to_owned(),
            ..WorkloadEntry::default()
        };
        let entries: Vec<&WorkloadEntry> = match &spec.selector {
            Some(_) => selected.workloads.iter().map(|entry| &entry.spec).collect(),
            None if by_name && spec.endpoints.is_empty() => vec![&itself],
            None => spec.endpoints.iter().collect(),
        };
        let dns: Vec<String> = entries
            .iter()
            .filter(|entry| by_name && is_host_name(&entry.address))
            .map(|entry| entry.address.clone())
            .collect();
        let ports = spec.ports.iter().map(|port| {
            let mut endpoints = Vec::new();
            for entry in &entries {
                if let Some(unix) = UnixAddr::parse(&entry.address) {
                    endpoints.push(Target::Unix(unix));
                    continue;
                }
                let number = entry.ports.get(&port.name).copied().or(port.target);
                let number = number.unwrap_or(port.number);
                let ips: Vec<IpAddr> = match ip(&entry.address) {
                    Some(ip) => vec![ip],
                    None if by_name => self.resolved(&entry.address).collect(),
                    None => Vec::new(),
                };
                endpoints.extend(
                    ips.into_iter()
                        .map(|ip| Target::Tcp(SocketAddr::new(ip, number))),
                );
            }
            let mut endpoints = sorted(endpoints);
            if discovery == Discovery::DnsRoundRobin {
                endpoints.truncate(1);
            }
            Port {
                number: port.number,
                name: port.name.clone(),
                protocol: Protocol::parse(&port.protocol),
                target: TargetPort::Number(port.target.unwrap_or(port.number)),
                endpoints: endpoints.into(),
            }
        });
        Service {
            hostname: host.into(),
            namespace: meta.namespace.as_str().into(),
            name: meta.name.clone(),
            created: meta.created,
            provider: Provider::External,
            discovery,
            vips: spec.addresses.iter().map(canonical).collect(),
            ports: ports.collect(),
            export_to: spec.export_to.iter().flatten().cloned().collect(),
            labels: meta.labels.clone(),
            selector: spec.selector.clone().unwrap_or_default(),
            dns,
            origin: Some(Arc::clone(origin)),
        }
    }

    fn resolved(&self, name: &str) -> impl Iterator<Item = IpAddr> + '_ {
        let addresses = self.dns.get(name).into_iter().flatten();
        addresses.map(IpAddr::to_canonical)
    }
}

/// An address in the form the tables use: a v4-mapped IPv6 address is IPv4.
fn ip(text: &str) -> Option<IpAddr> {
    syntax::ip(text).map(|ip| ip.to_canonical())
}

fn is_host_name(address: &str) -> bool {
    !address.is_empty() && ip(address).is_none() && UnixAddr::parse(address).is_none()
}

/// A network in the form the tables use: a v4-mapped IPv6 network is IPv4.
#[must_use]
pub fn canonical(net: &IpNet) -> IpNet {
    let mapped = match net {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => v6.addr().to_ipv4_mapped(),
        _ => None,
    };
    mapped
        .and_then(|v4| IpNet::new(v4.into(), net.prefix_len() - 96).ok())
        .unwrap_or(*net)
        .trunc()
}

/// In order, each once.
pub(super) fn sorted(mut targets: Vec<Target>) -> Vec<Target> {
    targets.sort();
    targets.dedup();
    targets
}
