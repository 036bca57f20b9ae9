//! Which services there are, and where they lead.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use sidecar_agent::model::{
    Object, Snapshot,
    service::{self, TargetPort},
    service_entry::{Resolution, ServiceEntry},
    workload::WorkloadEntry,
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub host: String,
    pub namespace: String,
    pub name: String,
    pub created: i64,
    pub kubernetes: bool,
    pub finding: Finding,
    pub networks: Vec<IpNet>,
    pub ports: Vec<Port>,
    /// `None`: nothing is said.
    pub export_to: Option<Vec<String>>,
    pub labels: BTreeMap<String, String>,
    pub selector: BTreeMap<String, String>,
    pub headless: bool,
    pub alias: bool,
}

/// How endpoints are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    Listed,
    Resolved,
    ResolvedOnce,
    /// Connections keep their destination.
    NotAtAll,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub number: u16,
    pub name: String,
    pub protocol: Protocol,
    pub target: TargetPort,
    pub endpoints: BTreeSet<Endpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Endpoint {
    Tcp(SocketAddr),
    Unix(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http,
    HttpProxy,
    Tls,
    ServerFirst,
    Tcp,
    Unknown,
    Udp,
}

/// All services, the oldest first.
pub fn services(snapshot: &Snapshot) -> Vec<Service> {
    let mut all = Vec::new();
    for service in &snapshot.services {
        all.push(kubernetes(snapshot, service));
    }
    for entry in &snapshot.service_entries {
        for host in &entry.spec.hosts {
            all.push(external(snapshot, entry, host));
        }
    }
    let alone = all.clone();
    // Entries of one host in one namespace are parts of one service, if their endpoints are listed.
    for service in all
        .iter_mut()
        .filter(|service| !service.kubernetes && service.finding == Finding::Listed)
    {
        let entries = alone.iter().filter(|part| {
            !part.kubernetes
                && part.host == service.host
                && part.namespace == service.namespace
                && part.finding == service.finding
        });
        let ports: Vec<&Port> = entries.flat_map(|part| &part.ports).collect();
        for port in &mut service.ports {
            let same = ports.iter().filter(|part| part.name == port.name);
            port.endpoints = same.flat_map(|part| part.endpoints.clone()).collect();
        }
    }
    for service in &mut all {
        if service.finding == Finding::ResolvedOnce {
            for port in &mut service.ports {
                port.endpoints = port.endpoints.iter().take(1).cloned().collect();
            }
        }
    }
    all.sort_by_key(|service| {
        let name = if service.kubernetes {
            &service.name
        } else {
            &service.host
        };
        (service.created, name.clone(), service.namespace.clone())
    });
    all
}

fn kubernetes(snapshot: &Snapshot, object: &Object<service::Service>) -> Service {
    let spec = &object.spec;
    let meta = &object.meta;
    // Kubernetes: "Ignored if type is ExternalName".
    let selector = match spec.external_name {
        Some(_) => BTreeMap::new(),
        None => spec.selector.clone(),
    };
    let ports = spec.ports.iter().map(|port| {
        let mut endpoints = BTreeSet::new();
        if let Some(name) = &spec.external_name {
            for ip in snapshot.dns.get(name).into_iter().flatten() {
                endpoints.insert(Endpoint::Tcp(SocketAddr::new(*ip, port.port)));
            }
        }
        for workload in selected(snapshot, &meta.namespace, &selector) {
            let number = match &port.target {
                TargetPort::Number(number) => Some(*number),
                TargetPort::Name(name) => workload.ports.get(name).copied(),
            };
            // A named port that the endpoint does not have: it is no endpoint of this port.
            if let Some(number) = number {
                // Kubernetes knows addresses only.
                let ip = workload.address.parse::<IpAddr>().ok();
                let at = |ip: IpAddr| Endpoint::Tcp(SocketAddr::new(ip.to_canonical(), number));
                endpoints.extend(ip.map(at));
            }
        }
        Port {
            number: port.port,
            name: port.name.clone(),
            protocol: kubernetes_protocol(port),
            target: port.target.clone(),
            endpoints,
        }
    });
    Service {
        host: format!(
            "{}.{}.svc.{}",
            meta.name, meta.namespace, snapshot.mesh.cluster_domain
        ),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        created: meta.created,
        kubernetes: true,
        finding: match (&spec.external_name, spec.headless) {
            (Some(_), _) => Finding::Resolved,
            (None, true) => Finding::NotAtAll,
            (None, false) => Finding::Listed,
        },
        networks: spec
            .cluster_ips
            .iter()
            .map(|ip| IpNet::from(ip.to_canonical()))
            .collect(),
        ports: ports.collect(),
        export_to: spec.export_to.clone(),
        labels: meta.labels.clone(),
        selector: selector.clone(),
        headless: spec.headless,
        alias: spec.external_name.is_some(),
    }
}

fn external(snapshot: &Snapshot, object: &Object<ServiceEntry>, host: &str) -> Service {
    let spec = &object.spec;
    let meta = &object.meta;
    let itself = [WorkloadEntry {
        address: host.to_owned(),
        ..WorkloadEntry::default()
    }];
    let resolves = matches!(spec.resolution, Resolution::Dns | Resolution::DnsRoundRobin);
    let empty = BTreeMap::new();
    let selector = spec.selector.as_ref().unwrap_or(&empty);
    let ports = spec.ports.iter().map(|port| {
        let listed = if spec.endpoints.is_empty() && resolves {
            &itself[..]
        } else {
            &spec.endpoints
        };
        let chosen = selected(snapshot, &meta.namespace, selector);
        let mut endpoints = BTreeSet::new();
        if spec.resolution != Resolution::None {
            for endpoint in listed.iter().chain(chosen) {
                let own = endpoint.ports.get(&port.name).copied();
                let number = own.or(port.target).unwrap_or(port.number);
                // Names are for resolving only.
                if resolves || !is_name(&endpoint.address) {
                    endpoints.extend(at(snapshot, &endpoint.address, number));
                }
            }
        }
        Port {
            number: port.number,
            name: port.name.clone(),
            protocol: protocol(&port.protocol),
            target: TargetPort::Number(port.target.unwrap_or(port.number)),
            endpoints,
        }
    });
    Service {
        host: host.to_owned(),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        created: meta.created,
        kubernetes: false,
        finding: match spec.resolution {
            Resolution::None => Finding::NotAtAll,
            Resolution::Static => Finding::Listed,
            Resolution::Dns => Finding::Resolved,
            Resolution::DnsRoundRobin => Finding::ResolvedOnce,
        },
        networks: spec.addresses.iter().map(canonical).collect(),
        ports: ports.collect(),
        export_to: spec.export_to.clone(),
        labels: meta.labels.clone(),
        selector: selector.clone(),
        headless: false,
        alias: false,
    }
}

fn is_name(address: &str) -> bool {
    !address.starts_with("unix://") && address.parse::<IpAddr>().is_err()
}

/// The endpoints that an address stands for.
fn at(snapshot: &Snapshot, address: &str, port: u16) -> Vec<Endpoint> {
    if address.starts_with("unix://") {
        return vec![Endpoint::Unix(address.to_owned())];
    }
    let ips = match address.parse::<IpAddr>() {
        Ok(ip) => BTreeSet::from([ip.to_canonical()]),
        Err(_) => snapshot.dns.get(address).cloned().unwrap_or_default(),
    };
    let at = |ip| Endpoint::Tcp(SocketAddr::new(ip, port));
    ips.into_iter().map(at).collect()
}

/// The workloads of a namespace with these labels; no labels select none.
fn selected<'a>(
    snapshot: &'a Snapshot,
    namespace: &str,
    wanted: &BTreeMap<String, String>,
) -> Vec<&'a WorkloadEntry> {
    let chosen = snapshot.workloads.iter().filter(|workload| {
        let labels = labels(workload);
        !wanted.is_empty()
            && workload.meta.namespace == namespace
            && wanted
                .iter()
                .all(|(key, value)| labels.get(key) == Some(value))
    });
    chosen.map(|workload| &workload.spec).collect()
}

/// Labels of the spec count before those of the metadata.
pub fn labels(workload: &Object<WorkloadEntry>) -> BTreeMap<String, String> {
    let mut labels = workload.meta.labels.clone();
    labels.extend(workload.spec.labels.clone());
    labels
}

fn canonical(network: &IpNet) -> IpNet {
    match network.addr().to_canonical() {
        IpAddr::V4(ip) if network.addr().is_ipv6() => {
            IpNet::new(ip.into(), network.prefix_len() - 96).expect("at most 32 bits are left")
        }
        _ => network.trunc(),
    }
}

pub fn protocol(text: &str) -> Protocol {
    match text.to_lowercase().as_str() {
        "http" | "http2" | "grpc" | "grpc-web" => Protocol::Http,
        "http_proxy" => Protocol::HttpProxy,
        "https" | "tls" => Protocol::Tls,
        "mongo" | "mysql" => Protocol::ServerFirst,
        "tcp" | "redis" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => Protocol::Unknown,
    }
}

/// Istio: the transport, `appProtocol`, the beginning of the name, the well-known port.
fn kubernetes_protocol(port: &service::ServicePort) -> Protocol {
    if port.transport == "UDP" {
        return Protocol::Udp;
    }
    let text = match port.app_protocol.as_deref() {
        Some("kubernetes.io/h2c") => "http2",
        Some(text) => text,
        None => &port.name,
    };
    match protocol(text.split('-').next().unwrap_or_default()) {
        Protocol::Unknown if [25, 53, 3306, 27017].contains(&port.port) => Protocol::Tcp,
        protocol => protocol,
    }
}

impl Service {
    /// Virtual addresses.
    pub fn singles(&self) -> Vec<IpAddr> {
        let single = |net: &&IpNet| net.prefix_len() == net.max_prefix_len();
        self.networks
            .iter()
            .filter(single)
            .map(IpNet::addr)
            .collect()
    }

    pub fn ranges(&self) -> Vec<IpNet> {
        let range = |net: &&IpNet| net.prefix_len() != net.max_prefix_len();
        self.networks.iter().filter(range).copied().collect()
    }
}
