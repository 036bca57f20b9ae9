//! Which ingress listeners a workload has, and where they lead.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use crate::{
    compile::plan::{Target, UnixAddr},
    model::{
        mesh::{InterceptionMode, MeshConfig},
        service::TargetPort,
        sidecar::Sidecar,
        validate::syntax,
    },
};

use super::{
    capture::{self, Families},
    finding::FindingKind,
    forward::{self, Forward},
    protocol::Protocol,
    registry::Registry,
};

/// An ingress listener.
#[derive(Clone, Debug)]
pub struct InboundListener {
    /// Index in the Sidecar's `ingress`; `None`: it follows from a service.
    pub ingress: Option<usize>,
    /// The service it follows from.
    pub service: Option<Arc<str>>,
    /// Its port.
    pub port: u16,
    /// A real listener; else one that captured connections reach.
    pub real: bool,
    /// Where a real one is bound.
    pub binds: Vec<IpAddr>,
    /// The unix socket it is, with port 0 (Istio 1.0 only).
    pub unix: Option<UnixAddr>,
    /// Where its connections go.
    pub forward: Forward,
}

/// Why a declared listener does not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// What is wrong.
    pub kind: FindingKind,
    /// What is wrong, for people.
    pub message: String,
}

impl Skipped {
    fn unreachable(message: impl Into<String>) -> Self {
        Self {
            kind: FindingKind::Unreachable,
            message: message.into(),
        }
    }
}

impl From<Skipped> for String {
    fn from(skipped: Skipped) -> Self {
        skipped.message
    }
}

/// The listeners that a Sidecar's `ingress` declares, by element; `Err` tells what is wrong with
/// it.
pub fn declared<'a>(
    sidecar: &'a Sidecar,
    mode: InterceptionMode,
    addresses: &'a [IpAddr],
) -> impl Iterator<Item = (usize, Result<InboundListener, Skipped>)> + 'a {
    sidecar
        .ingress
        .iter()
        .enumerate()
        .map(move |(index, ingress)| {
            let real = capture::ingress_is_real(mode, ingress.capture_mode);
            let listener = || {
                let unix = UnixAddr::parse(&ingress.bind);
                if !real && unix.is_none() && !capture::captures(mode) {
                    return Err(Skipped::unreachable(
                        "captureMode IPTABLES, but interception mode NONE: nothing is captured",
                    ));
                }
                let port = u16::try_from(ingress.port.number).map_err(|_| {
                    Skipped::unreachable(format!("port {} is no port", ingress.port.number))
                })?;
                let bind = match ingress.bind.as_str() {
                    "" => None,
                    _ if unix.is_some() => None,
                    text => Some(syntax::ip(text).ok_or_else(|| {
                        Skipped::unreachable(format!("bind {text:?} is no address"))
                    })?),
                };
                let protocol = Protocol::parse(&ingress.port.protocol);
                if capture::ingress_is_reserved(bind, port, protocol) {
                    return Err(Skipped {
                        kind: FindingKind::ReservedPort,
                        message: format!(
                            "port {port} on every address is kept for the proxy itself; there \
                             will be no listener"
                        ),
                    });
                }
                let forward =
                    forward::forward(&ingress.default_endpoint, addresses).ok_or_else(|| {
                        Skipped::unreachable(format!(
                            "defaultEndpoint {:?} is no endpoint",
                            ingress.default_endpoint
                        ))
                    })?;
                if unix.is_some() && forward.target == Target::Original {
                    return Err(Skipped::unreachable(
                        "a listener on a unix socket leads nowhere without a defaultEndpoint",
                    ));
                }
                Ok(InboundListener {
                    ingress: Some(index),
                    service: None,
                    port,
                    real: real || unix.is_some(),
                    binds: if real && unix.is_none() {
                        capture::ingress_binds(bind, addresses)
                    } else {
                        Vec::new()
                    },
                    unix,
                    forward,
                })
            };
            (index, listener())
        })
}

/// The listeners of a workload whose Sidecar declares no ingress: one for each target port of
/// the services that select it, the oldest service first. Named target ports are looked up in
/// `ports`. In mode NONE there are none. With `inboundTrafficPolicy: LOCALHOST` they lead to the
/// loopback address of the family of `addresses`.
#[must_use]
pub fn derived(
    mesh: &MeshConfig,
    registry: &Registry,
    mode: InterceptionMode,
    namespace: &str,
    labels: &BTreeMap<String, String>,
    ports: &BTreeMap<String, u16>,
    addresses: &[IpAddr],
) -> Vec<InboundListener> {
    if !capture::captures(mode) {
        return Vec::new();
    }
    // IPv4's, unless the workload has IPv6 only.
    let loopback = Families::of(addresses).loopbacks().first().copied();
    let localhost = loopback.filter(|_| mesh.inbound_localhost);
    let mut seen = BTreeSet::new();
    let mut listeners = Vec::new();
    for service in registry.selecting(namespace, labels) {
        for port in service
            .ports
            .iter()
            .filter(|port| port.protocol != Protocol::Udp)
        {
            let number = match &port.target {
                TargetPort::Number(0) => port.number,
                TargetPort::Number(number) => *number,
                TargetPort::Name(name) => match ports.get(name) {
                    Some(number) => *number,
                    None => continue,
                },
            };
            if !seen.insert(number) {
                continue;
            }
            let target = localhost.map_or(Target::Original, |ip| {
                Target::Tcp(SocketAddr::new(ip, number))
            });
            listeners.push(InboundListener {
                ingress: None,
                service: Some(Arc::clone(&service.hostname)),
                port: number,
                real: false,
                binds: Vec::new(),
                unix: None,
                forward: Forward {
                    target,
                    source: None,
                },
            });
        }
    }
    listeners
}
