//! What the kernel needs for one workload, as plain data.
//!
//! A plan holds nothing that differs between replicas, so equal workloads share one; and nothing
//! that can be found only at run time (relay ports, socket descriptors).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
    sync::Arc,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sidecar_common::{
    Endpoint,
    decide::Direction,
    values::{PlanHeader, Rule},
};

use crate::model::ResourceRef;

/// The plan of one workload.
///
/// [`Plan::digest`] leaves out where resources were written (file, line, field): moving a resource
/// within a file is no new plan.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What holds for every connection.
    pub header: PlanHeader,
    /// Outbound rules; those of other plans too.
    pub outbound: Arc<Outbound>,
    /// Inbound rules; a wildcard address: any local address of its family.
    pub inbound: BTreeMap<Endpoint, Rule>,
    /// Listeners of the inbound rules. `Rule::listener` counts them after the outbound ones.
    pub inbound_listeners: Vec<Listener>,
    /// Ports on which a connection may be handed to a listening socket of the workload: targets of
    /// direct ingress, the proxy's ports.
    pub listen_ports: BTreeSet<u16>,
    /// Users and groups that matter, by their role (`OwnerKey::PROXY_UID` and so on): of the proxy's
    /// those that are not in the header.
    pub owners: BTreeSet<(u32, u32)>,
    /// What interfaces of the workload's namespace are (`Interface::EXCLUDED` and so on), by name;
    /// see [`interface_flags`].
    pub interfaces: BTreeMap<String, u32>,
    /// Destinations that are captured where they arrive at a virtual interface, if not all are. No
    /// IPv6 network among them holds the mapped range of IPv4.
    pub virtual_ranges: BTreeSet<IpNet>,
    /// The Sidecar, which declares what is [`DeclaredBy::Sidecar`].
    pub sidecar: Option<ResourceRef>,
}

/// The outbound half of a plan.
#[derive(Clone, Debug)]
pub struct Outbound {
    /// What holds where no rule does.
    pub default: Rule,
    /// Rules for one address and port.
    pub exact: BTreeMap<Endpoint, Rule>,
    /// Rules for a network; port 0: any port. IPv4 networks are IPv4 (`ipnet`).
    pub prefixes: BTreeMap<(u16, IpNet), Rule>,
    /// Backends of the rules that have several; index: `Rule::group`.
    pub backends: Vec<Vec<Endpoint>>,
    /// Listeners of the rules; index: `Rule::listener`.
    pub listeners: Vec<Listener>,
    /// Of all this.
    pub digest: blake3::Hash,
}

impl Outbound {
    /// The half with these parts; see the fields.
    #[must_use]
    pub fn new(
        default: Rule,
        exact: BTreeMap<Endpoint, Rule>,
        prefixes: BTreeMap<(u16, IpNet), Rule>,
        backends: Vec<Vec<Endpoint>>,
        listeners: Vec<Listener>,
    ) -> Self {
        let mut outbound = Self {
            default,
            exact,
            prefixes,
            backends,
            listeners,
            digest: blake3::Hash::from_bytes([0; 32]),
        };
        outbound.digest = outbound.compute_digest();
        outbound
    }
}

/// A listener that a Sidecar declares or implies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Ingress or egress.
    pub direction: Direction,
    /// Where it is.
    pub place: Place,
    /// What declares it.
    pub declared: DeclaredBy,
    /// The service that is reached through it (a host name), if one is.
    pub service: Option<Arc<str>>,
    /// Where its connections lead, for people and for the relay.
    pub targets: Arc<[Target]>,
}

/// Where a listener is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// At an address and port.
    Ip(SocketAddr),
    /// At this port of whatever address captured connections were going to.
    Port(u16),
    /// At a unix socket, on which the relay listens.
    Unix(UnixAddr),
    /// Wherever nothing else is: Istio's `virtualOutbound`.
    Unknown,
}

/// What declares a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeclaredBy {
    /// No resource: it follows from the mesh's settings.
    Nothing,
    /// A resource as a whole.
    Resource(Arc<ResourceRef>),
    /// A field of the plan's Sidecar.
    Sidecar(Field),
}

/// A field of a Sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// An element of `ingress`.
    Ingress(usize),
    /// An element of `egress`.
    Egress(usize),
    /// `outboundTrafficPolicy`.
    OutboundTrafficPolicy,
    /// `outboundTrafficPolicy.egressProxy`.
    EgressProxy,
}

impl fmt::Display for Field {
    /// The field's path, such as `spec.egress[1]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ingress(index) => write!(f, "spec.ingress[{index}]"),
            Self::Egress(index) => write!(f, "spec.egress[{index}]"),
            Self::OutboundTrafficPolicy => f.write_str("spec.outboundTrafficPolicy"),
            Self::EgressProxy => f.write_str("spec.outboundTrafficPolicy.egressProxy"),
        }
    }
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
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
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
    /// Prefixes: outbound rules, and destinations at virtual interfaces.
    pub outbound_prefixes: usize,
    /// Inbound rules.
    pub inbound: usize,
    /// Backends, over all groups.
    pub backends: usize,
    /// Ports of the workload's own listening sockets.
    pub listen_ports: usize,
    /// Users and groups.
    pub owners: usize,
    /// Names of interfaces. The workload may have several that one name means.
    pub interfaces: usize,
}

impl Plan {
    /// All listeners, by `Rule::listener`.
    pub fn listeners(&self) -> impl Iterator<Item = &Listener> {
        self.outbound
            .listeners
            .iter()
            .chain(&self.inbound_listeners)
    }

    /// The listener of a rule, by `Rule::listener`.
    #[must_use]
    pub fn listener(&self, index: u32) -> Option<&Listener> {
        let index = usize::try_from(index).ok()?;
        let outbound = &self.outbound.listeners;
        outbound.get(index).or_else(|| {
            self.inbound_listeners
                .get(index.checked_sub(outbound.len())?)
        })
    }

    /// The resource that declares a listener of this plan.
    #[must_use]
    pub fn resource<'a>(&'a self, listener: &'a Listener) -> Option<&'a ResourceRef> {
        match &listener.declared {
            DeclaredBy::Nothing => None,
            DeclaredBy::Resource(resource) => Some(resource),
            DeclaredBy::Sidecar(_) => self.sidecar.as_ref(),
        }
    }

    /// Every rule.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        let Outbound {
            exact, prefixes, ..
        } = &*self.outbound;
        exact
            .values()
            .chain(prefixes.values())
            .chain(self.inbound.values())
            .chain([&self.header.outbound_default, &self.header.inbound_default])
    }

    /// How many map entries this plan needs.
    #[must_use]
    pub fn size(&self) -> PlanSize {
        PlanSize {
            outbound: self.outbound.exact.len(),
            outbound_prefixes: self.outbound.prefixes.len() + self.virtual_ranges.len(),
            inbound: self.inbound.len(),
            backends: self.outbound.backends.iter().map(Vec::len).sum(),
            listen_ports: self.listen_ports.len(),
            owners: self.owners.len(),
            interfaces: self.interfaces.len(),
        }
    }

    /// What the interface of this name is: see [`interface_flags`].
    #[must_use]
    pub fn interface(&self, name: &str) -> u32 {
        interface_flags(&self.interfaces, name)
    }
}

/// What of [`Plan::interfaces`] the interface of this name is: `Interface::EXCLUDED` and so on, or 0.
/// As in iptables, a `+` at the end of a name that was declared stands for anything.
#[must_use]
pub fn interface_flags(interfaces: &BTreeMap<String, u32>, name: &str) -> u32 {
    let meant = interfaces
        .iter()
        .filter(|(declared, _)| is_meant(declared, name));
    meant.fold(0, |all, (_, flags)| all | flags)
}

/// Whether an interface of this name is one that was declared so.
pub(crate) fn is_meant(declared: &str, name: &str) -> bool {
    match declared.strip_suffix('+') {
        Some(prefix) => name.starts_with(prefix),
        None => name == declared,
    }
}

impl Listener {
    /// The unix socket that the relay listens on for it, if it is one.
    #[must_use]
    pub fn unix_bind(&self) -> Option<&UnixAddr> {
        match &self.place {
            Place::Unix(address) => Some(address),
            Place::Ip(_) | Place::Port(_) | Place::Unknown => None,
        }
    }

    /// Field path of what declares it, such as `spec.egress[1]`; empty: the resource as a whole.
    #[must_use]
    pub fn field(&self) -> String {
        match &self.declared {
            DeclaredBy::Sidecar(field) => field.to_string(),
            DeclaredBy::Nothing | DeclaredBy::Resource(_) => String::new(),
        }
    }
}

impl fmt::Display for Listener {
    /// A name for people: `ingress *:9080`, `egress 127.0.0.1:3306`, ...
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = match self.direction {
            Direction::Inbound => "ingress",
            Direction::Outbound => "egress",
        };
        write!(f, "{direction} {}", self.place)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Port(port) => write!(f, "*:{port}"),
            Self::Unix(address) => address.fmt(f),
            Self::Unknown => f.write_str("virtualOutbound"),
        }
    }
}
