//! What the kernel needs for one workload, as plain data.
//!
//! A plan holds nothing that differs between replicas, so equal workloads share one; and nothing
//! that can be found only at run time (relay ports, socket descriptors).

use std::{
    collections::{BTreeMap, BTreeSet},
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
/// Equality and [`Plan::digest`] leave out where resources were written (file and line): moving a
/// resource within a file is no new plan.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What holds for every connection.
    pub header: PlanHeader,
    /// Outbound rules for one address and port.
    pub outbound: BTreeMap<Endpoint, Rule>,
    /// Outbound rules for a network; port 0: any port. IPv4 networks are IPv4 (`ipnet`).
    pub outbound_prefixes: BTreeMap<(u16, IpNet), Rule>,
    /// Inbound rules; address [`sidecar_common::Addr::ANY`]: any local address.
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
