//! The service registry: Kubernetes services and service entries in one form.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;

use crate::{
    compile::plan::{Target, UnixAddr},
    model::{
        Object, ResourceRef, Snapshot,
        service::{self, TargetPort},
        service_entry::{Resolution, ServiceEntry},
        workload::WorkloadEntry,
    },
};

use super::{protocol::Protocol, select};

/// Who declares a service. Kubernetes wins over others for one host name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Provider {
    /// A Kubernetes `Service`.
    Kubernetes,
    /// A `ServiceEntry`.
    #[default]
    External,
}

/// How a service's endpoints are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Discovery {
    /// The endpoints are listed.
    #[default]
    Listed,
    /// Host names are resolved.
    Dns,
    /// Host names are resolved, and one address is used.
    DnsRoundRobin,
    /// Connections keep their destination (`resolution: NONE`, headless services).
    Passthrough,
}

/// One service.
#[derive(Clone, Debug, Default)]
pub struct Service {
    /// Its host name; may be a wildcard (`*.example.com`).
    pub hostname: String,
    /// Its namespace.
    pub namespace: String,
    /// Name of the resource.
    pub name: String,
    /// Creation, seconds since the epoch.
    pub created: i64,
    /// Who declares it.
    pub provider: Provider,
    /// How its endpoints are found.
    pub discovery: Discovery,
    /// Virtual addresses, single ones as networks of one address; empty: it has none.
    pub vips: Vec<IpNet>,
    /// Its ports.
    pub ports: Vec<Port>,
    /// `exportTo`; empty: the mesh's default.
    pub export_to: BTreeSet<String>,
    /// Labels of the resource.
    pub labels: BTreeMap<String, String>,
    /// What selects its endpoints; empty: nothing does.
    pub selector: BTreeMap<String, String>,
    /// Host names its endpoints depend on.
    pub dns: Vec<String>,
    /// The resource that declares it.
    pub origin: Option<ResourceRef>,
}

/// A port of a service.
#[derive(Clone, Debug, Default)]
pub struct Port {
    /// The service's port.
    pub number: u16,
    /// Its name.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// The endpoints' port.
    pub target: TargetPort,
    /// The known endpoints, sorted.
    pub endpoints: Vec<Target>,
}

impl Service {
    /// Virtual addresses that are single addresses.
    pub fn single_vips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.vips
            .iter()
            .filter(|net| is_single(net))
            .map(IpNet::addr)
    }

    /// Virtual addresses that are networks.
    pub fn vip_networks(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.vips.iter().filter(|net| !is_single(net)).copied()
    }

    /// Whether a connection to the service keeps its destination. A Kubernetes service without
    /// known endpoints counts: its endpoints are the cluster's business.
    #[must_use]
    pub fn keeps_destination(&self, port: &Port) -> bool {
        self.discovery == Discovery::Passthrough
            || self.provider == Provider::Kubernetes
                && self.discovery == Discovery::Listed
                && port.endpoints.is_empty()
    }

    /// Where a connection leads that was *not* made to an address of the service: its
    /// endpoints, else its virtual addresses.
    #[must_use]
    pub fn targets(&self, port: &Port) -> Vec<Target> {
        if port.endpoints.is_empty() && self.keeps_destination(port) {
            self.single_vips()
                .map(|ip| Target::Tcp(SocketAddr::new(ip, port.number)))
                .collect()
        } else {
            port.endpoints.clone()
        }
    }
}

fn is_single(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}

/// All services, in the order (creation, name, namespace), and who may see them.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    services: Vec<Service>,
    /// Exported to everybody.
    public: Vec<usize>,
    /// Exported to single namespaces: private ones, then those of other namespaces.
    exported: HashMap<String, Vec<usize>>,
    by_hostname: HashMap<String, Vec<usize>>,
}

impl Registry {
    /// The services of a snapshot.
    #[must_use]
    pub fn new(snapshot: &Snapshot) -> Self {
        let workloads = WorkloadIndex::new(&snapshot.workloads);
        let resolver = Resolver {
            snapshot,
            workloads,
        };
        let mut services: Vec<Service> = snapshot
            .services
            .iter()
            .map(|s| resolver.kubernetes(s))
            .collect();
        for entry in &snapshot.service_entries {
            services.extend(
                entry
                    .spec
                    .hosts
                    .iter()
                    .map(|host| resolver.external(entry, host)),
            );
        }
        services.sort_by(|a, b| {
            (a.created, &a.name, &a.namespace).cmp(&(b.created, &b.name, &b.namespace))
        });
        share_endpoints(&mut services);
        Self::from_services(services, &snapshot.mesh.default_service_export_to)
    }

    /// A registry of these services in this order; `default_export_to` holds for those that say
    /// nothing.
    #[must_use]
    pub fn from_services(services: Vec<Service>, default_export_to: &[String]) -> Self {
        let default: BTreeSet<String> = default_export_to.iter().cloned().collect();
        let mut registry = Self::default();
        let mut foreign: HashMap<String, Vec<usize>> = HashMap::new();
        for (index, service) in services.iter().enumerate() {
            registry
                .by_hostname
                .entry(service.hostname.clone())
                .or_default()
                .push(index);
            let export_to = if service.export_to.is_empty() {
                &default
            } else {
                &service.export_to
            };
            if export_to.contains("*") {
                registry.public.push(index);
                continue;
            }
            if export_to.contains("~") {
                continue;
            }
            for target in export_to {
                if target == "." || *target == service.namespace {
                    registry
                        .exported
                        .entry(service.namespace.clone())
                        .or_default()
                        .push(index);
                } else {
                    foreign.entry(target.clone()).or_default().push(index);
                }
            }
        }
        for list in registry.exported.values_mut() {
            list.dedup();
        }
        for (namespace, list) in foreign {
            registry.exported.entry(namespace).or_default().extend(list);
        }
        registry.services = services;
        registry
    }

    /// Whether there is no service at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// Every service `namespace` may see, with its position in the registry's order: those
    /// exported to it by name first, then the public ones.
    pub fn visible(&self, namespace: &str) -> impl Iterator<Item = (usize, &Service)> {
        self.exported
            .get(namespace)
            .into_iter()
            .flatten()
            .chain(&self.public)
            .filter_map(|index| Some((*index, self.services.get(*index)?)))
    }

    /// Every service with this host name, in the registry's order.
    pub fn by_hostname(&self, hostname: &str) -> impl Iterator<Item = (usize, &Service)> {
        self.by_hostname
            .get(hostname)
            .into_iter()
            .flatten()
            .filter_map(|index| Some((*index, self.services.get(*index)?)))
    }

    /// Whether `namespace` may see the service at this position.
    #[must_use]
    pub fn is_visible(&self, index: usize, namespace: &str) -> bool {
        self.public.binary_search(&index).is_ok()
            || self
                .exported
                .get(namespace)
                .is_some_and(|list| list.contains(&index))
    }

    /// Services of `namespace` that select a workload with these labels, oldest first.
    pub fn selecting<'a>(
        &'a self,
        namespace: &'a str,
        labels: &'a BTreeMap<String, String>,
    ) -> impl Iterator<Item = &'a Service> {
        self.services.iter().filter(move |service| {
            service.namespace == namespace
                && !service.selector.is_empty()
                && select::matches(&service.selector, labels)
        })
    }
}

/// Service entries of one host in one namespace are parts of one service: Istio keeps endpoints by
/// host name, namespace and port, so that each has the endpoints of all. Entries whose endpoints
/// are found in other ways do not take part.
fn share_endpoints(services: &mut [Service]) {
    let listed = |service: &Service| {
        service.provider == Provider::External && service.discovery == Discovery::Listed
    };
    let key = |service: &Service, port: &Port| {
        (
            service.namespace.clone(),
            service.hostname.clone(),
            port.number,
        )
    };
    let mut by_host: HashMap<(&str, &str), u32> = HashMap::new();
    for service in services.iter().filter(|service| listed(service)) {
        *by_host
            .entry((&service.namespace, &service.hostname))
            .or_default() += 1;
    }
    if by_host.values().all(|entries| *entries == 1) {
        return;
    }
    let mut endpoints: HashMap<_, Vec<Target>> = HashMap::new();
    for service in services.iter().filter(|service| listed(service)) {
        for port in &service.ports {
            let all = endpoints.entry(key(service, port)).or_default();
            all.extend(port.endpoints.iter().cloned());
        }
    }
    for service in services.iter_mut().filter(|service| listed(service)) {
        let mut ports = std::mem::take(&mut service.ports);
        for port in &mut ports {
            if let Some(all) = endpoints.get(&key(service, port)) {
                port.endpoints = sorted(all.clone());
            }
        }
        service.ports = ports;
    }
}

/// Turns resources into services.
struct Resolver<'a> {
    snapshot: &'a Snapshot,
    workloads: WorkloadIndex<'a>,
}

impl Resolver<'_> {
    fn kubernetes(&self, object: &Object<service::Service>) -> Service {
        let Object { meta, spec, .. } = object;
        let selected = self.workloads.selected(&meta.namespace, &spec.selector);
        let external: Vec<String> = spec.external_name.iter().cloned().collect();
        let ports = spec.ports.iter().map(|port| {
            let protocol = Protocol::of_service_port(
                &port.name,
                port.app_protocol.as_deref(),
                &port.transport,
                port.port,
            );
            let mut endpoints: Vec<Target> = selected
                .iter()
                .filter_map(|entry| {
                    let number = match &port.target {
                        TargetPort::Number(0) => port.port,
                        TargetPort::Number(number) => *number,
                        TargetPort::Name(name) => *entry.ports.get(name)?,
                    };
                    Some(Target::Tcp(SocketAddr::new(ip(&entry.address)?, number)))
                })
                .collect();
            let resolved = external.iter().flat_map(|name| self.resolved(name));
            endpoints.extend(resolved.map(|ip| Target::Tcp(SocketAddr::new(ip, port.port))));
            Port {
                number: port.port,
                name: port.name.clone(),
                protocol,
                target: port.target.clone(),
                endpoints: sorted(endpoints),
            }
        });
        Service {
            hostname: format!(
                "{}.{}.svc.{}",
                meta.name, meta.namespace, self.snapshot.mesh.cluster_domain
            ),
            namespace: meta.namespace.clone(),
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
            selector: spec.selector.clone(),
            dns: external,
            origin: Some(object.reference("Service")),
        }
    }

    fn external(&self, object: &Object<ServiceEntry>, host: &str) -> Service {
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
            Some(selector) => self.workloads.selected(&meta.namespace, selector),
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
                endpoints,
            }
        });
        Service {
            hostname: host.to_owned(),
            namespace: meta.namespace.clone(),
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
            origin: Some(object.reference("ServiceEntry")),
        }
    }

    fn resolved(&self, name: &str) -> impl Iterator<Item = IpAddr> + '_ {
        self.snapshot
            .dns
            .get(name)
            .into_iter()
            .flatten()
            .map(IpAddr::to_canonical)
    }
}

/// Workloads by namespace and label, so that a selector does not have to try all of them.
struct WorkloadIndex<'a> {
    by_label: HashMap<(&'a str, &'a str, &'a str), Vec<&'a Arc<Object<WorkloadEntry>>>>,
}

impl<'a> WorkloadIndex<'a> {
    fn new(workloads: &'a [Arc<Object<WorkloadEntry>>]) -> Self {
        let mut by_label: HashMap<_, Vec<_>> = HashMap::new();
        for workload in workloads {
            for (key, value) in workload.meta.labels.iter().chain(&workload.spec.labels) {
                let list: &mut Vec<_> = by_label
                    .entry((
                        workload.meta.namespace.as_str(),
                        key.as_str(),
                        value.as_str(),
                    ))
                    .or_default();
                list.push(workload);
            }
        }
        Self { by_label }
    }

    /// Workloads of `namespace` with all these labels; an empty selector selects none.
    fn selected(
        &self,
        namespace: &str,
        selector: &BTreeMap<String, String>,
    ) -> Vec<&'a WorkloadEntry> {
        let candidates = selector
            .iter()
            .map(|(key, value)| {
                self.by_label
                    .get(&(namespace, key.as_str(), value.as_str()))
                    .map_or(&[][..], Vec::as_slice)
            })
            .min_by_key(|list| list.len())
            .unwrap_or_default();
        candidates
            .iter()
            .filter(|workload| select::matches(selector, &labels(workload)))
            .map(|workload| &workload.spec)
            .collect()
    }
}

/// A workload's labels: those of its spec over those of its metadata.
#[must_use]
pub fn labels(workload: &Object<WorkloadEntry>) -> BTreeMap<String, String> {
    let mut labels = workload.meta.labels.clone();
    labels.extend(
        workload
            .spec
            .labels
            .iter()
            .map(|(k, v)| (k.clone(), v.clone())),
    );
    labels
}

/// An address in the form the tables use: a v4-mapped IPv6 address is IPv4.
fn ip(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
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

fn sorted(mut targets: Vec<Target>) -> Vec<Target> {
    targets.sort();
    targets.dedup();
    targets
}
