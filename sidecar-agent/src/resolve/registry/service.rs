//! A service, whoever declares it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;

use crate::{
    compile::plan::Target,
    model::{ResourceRef, service::TargetPort},
    resolve::protocol::Protocol,
};

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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Its host name; may be a wildcard (`*.example.com`).
    pub hostname: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
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
    pub origin: Option<Arc<ResourceRef>>,
}

/// A port of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
    pub endpoints: Arc<[Target]>,
}

impl Service {
    /// The key of Istio's order: creation, name, namespace. A service entry goes by its host name.
    #[must_use]
    pub fn order(&self) -> (i64, &str, &str) {
        let name = match self.provider {
            Provider::Kubernetes => &self.name,
            Provider::External => &*self.hostname,
        };
        (self.created, name, &self.namespace)
    }

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

    /// Whether it has no address of its own and is called at its endpoints, where there are any:
    /// a headless service, or an alias.
    #[must_use]
    pub fn is_called_at_endpoints(&self) -> bool {
        self.vips.is_empty()
            && match self.discovery {
                Discovery::Passthrough => true,
                Discovery::Dns => self.provider == Provider::Kubernetes,
                Discovery::Listed | Discovery::DnsRoundRobin => false,
            }
    }

    /// Where a connection leads that was *not* made to an address of the service: its
    /// endpoints, else its virtual addresses.
    #[must_use]
    pub fn targets(&self, port: &Port) -> Arc<[Target]> {
        if port.endpoints.is_empty() && self.keeps_destination(port) {
            self.single_vips()
                .map(|ip| Target::Tcp(SocketAddr::new(ip, port.number)))
                .collect()
        } else {
            Arc::clone(&port.endpoints)
        }
    }
}

impl Port {
    /// The addresses of its endpoints.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.endpoints.iter().filter_map(|target| match target {
            Target::Tcp(address) => Some(address.ip()),
            Target::Unix(_) | Target::Original => None,
        })
    }
}

fn is_single(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}
