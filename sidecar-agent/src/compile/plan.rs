//! What the kernel needs for one workload, as plain data.
//!
//! A plan holds nothing that differs between replicas, so equal workloads share one; and nothing
//! that can be found only at run time (relay ports, socket descriptors).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
};

use ipnet::IpNet;
use serde::Serialize;
use sidecar_common::{
    Endpoint,
    values::{PlanHeader, Rule},
};

use crate::model::ResourceRef;

/// The plan of one workload.
///
/// Equality and [`Plan::digest`] leave out where resources were written (file, line, field): moving a
/// resource within a file is no new plan.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What holds for every connection.
    pub header: PlanHeader,
    /// Outbound rules for one address and port.
    pub outbound: BTreeMap<Endpoint, Rule>,
    /// Outbound rules for a network; port 0: any port. IPv4 networks are IPv4 (`ipnet`).
    pub outbound_prefixes: BTreeMap<(u16, IpNet), Rule>,
    /// Inbound rules; a wildcard address: any local address of its family.
    pub inbound: BTreeMap<Endpoint, Rule>,
    /// Backends of the rules that have several; index: `Rule::group`.
    pub backends: Vec<Vec<Endpoint>>,
    /// Every listener, by `Rule::listener`: for `explain`, `trace`, and the relay.
    pub listeners: Vec<Listener>,
    /// Ports on which a connection may be handed to a listening socket of the workload: targets of
    /// direct ingress, the proxy's inbound port.
    pub listen_ports: BTreeSet<u16>,
}

/// A listener that a Sidecar declares or implies.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Listener {
    /// A name for people: `ingress 0.0.0.0:9080`, `egress 127.0.0.1:3306`, ...
    pub name: String,
    /// The resource that declares it.
    pub resource: Option<ResourceRef>,
    /// Field path of what declares it in the resource, such as `spec.egress[1]`; empty: the
    /// resource as a whole.
    pub field: String,
    /// The service that is reached through it (a host name), if one is.
    pub service: Option<String>,
    /// Where its connections lead, for people and for the relay.
    pub targets: Vec<Target>,
    /// A unix socket the relay must listen on for it.
    pub unix_bind: Option<UnixAddr>,
}

/// Where connections of a listener lead.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// An IP endpoint.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(UnixAddr),
    /// Where the connection was going.
    Original,
}

/// Address of a unix socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum UnixAddr {
    /// A path in the file system.
    Path(String),
    /// A name in the abstract namespace, without the leading `@`.
    Abstract(String),
}

impl UnixAddr {
    /// Reads `unix:///path` or `unix://@name`; `None`: it is no unix address.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("unix://")?;
        match rest.strip_prefix('@') {
            Some(name) => Some(Self::Abstract(name.to_owned())),
            None if rest.is_empty() => None,
            None => Some(Self::Path(rest.to_owned())),
        }
    }
}

impl fmt::Display for UnixAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "unix://{path}"),
            Self::Abstract(name) => write!(f, "unix://@{name}"),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(address) => address.fmt(f),
            Self::Original => f.write_str("original destination"),
        }
    }
}

/// How many map entries a plan needs, to be held against the maps' capacities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PlanSize {
    /// Exact outbound rules.
    pub outbound: usize,
    /// Outbound prefix rules.
    pub outbound_prefixes: usize,
    /// Inbound rules.
    pub inbound: usize,
    /// Backends, over all groups.
    pub backends: usize,
    /// Ports of the workload's own listening sockets.
    pub listen_ports: usize,
}

impl Plan {
    /// The listener of a rule, by `Rule::listener`.
    #[must_use]
    pub fn listener(&self, index: u32) -> Option<&Listener> {
        self.listeners.get(usize::try_from(index).ok()?)
    }

    /// How many map entries this plan needs.
    #[must_use]
    pub fn size(&self) -> PlanSize {
        PlanSize {
            outbound: self.outbound.len(),
            outbound_prefixes: self.outbound_prefixes.len(),
            inbound: self.inbound.len(),
            backends: self.backends.iter().map(Vec::len).sum(),
            listen_ports: self.listen_ports.len(),
        }
    }
}

impl PartialEq for Plan {
    fn eq(&self, other: &Self) -> bool {
        // Destructured, so that a new field is not forgotten.
        let Self {
            header,
            outbound,
            outbound_prefixes,
            inbound,
            backends,
            listeners,
            listen_ports,
        } = self;
        *header == other.header
            && *outbound == other.outbound
            && *outbound_prefixes == other.outbound_prefixes
            && *inbound == other.inbound
            && *backends == other.backends
            && *listen_ports == other.listen_ports
            && listeners.len() == other.listeners.len()
            && listeners
                .iter()
                .zip(&other.listeners)
                .all(|(a, b)| a.content() == b.content())
    }
}

impl Eq for Plan {}

impl Listener {
    /// All but where it was written: the resource's file and line, and the field.
    pub(crate) fn content(&self) -> ListenerContent<'_> {
        let Self {
            name,
            resource,
            field: _,
            service,
            targets,
            unix_bind,
        } = self;
        let resource = resource
            .as_ref()
            .map(|r| (r.kind, r.namespace.as_str(), r.name.as_str()));
        (
            name,
            resource,
            service.as_deref(),
            targets,
            unix_bind.as_ref(),
        )
    }
}

/// Name, resource (kind, namespace, name), service, targets, unix bind address.
pub(crate) type ListenerContent<'a> = (
    &'a str,
    Option<(&'static str, &'a str, &'a str)>,
    Option<&'a str>,
    &'a [Target],
    Option<&'a UnixAddr>,
);
