//! `capture-cases.yaml`: real listener or captured, bind addresses, where ingress leads.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
};

use serde::Deserialize;

use crate::{
    compile::{Target, UnixAddr},
    model::{
        Snapshot,
        mesh::{InterceptionMode, MeshConfig},
        service::{Service, ServicePort, TargetPort},
        sidecar::{CaptureMode, EgressListener, IngressListener, Port, Sidecar},
    },
    resolve::{
        Registry, capture, forward, inbound,
        listeners::{self, Bind, Context, OutboundListener},
        protocol::Protocol,
        registry,
    },
};

use super::{CaseResult, Malformed, expect, object, or_default, visibility::CaseCaptureMode};

/// Runs the file.
///
/// # Errors
/// When the text is no such file.
pub fn run(text: &str) -> Result<Vec<CaseResult>, Malformed> {
    super::sections(
        text,
        &[
            ("bindToPort", |name, cases| {
                super::run(name, cases, check_bind_to_port)
            }),
            ("egressBind", |name, cases| {
                super::run(name, cases, check_egress_bind)
            }),
            ("ingressBindWhenReal", |name, cases| {
                super::run(name, cases, check_ingress_bind)
            }),
            ("defaultEndpointForwarding", |name, cases| {
                super::run(name, cases, check_forwarding)
            }),
            ("inboundClusters", |name, cases| {
                super::run(name, cases, check_clusters)
            }),
            ("privilegedPorts", |name, section| {
                super::run_sourced(name, section, check_privileged)
            }),
            ("virtualListeners", |name, section| {
                super::run_sourced(name, section, check_virtual)
            }),
        ],
    )
}

const V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 1, 5));
const V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 5));

/// As Istio reads it: what is not a mode is REDIRECT.
pub(super) fn mode(text: Option<&str>) -> InterceptionMode {
    text.and_then(capture::interception_mode)
        .unwrap_or(InterceptionMode::Redirect)
}

/// Where a listener sits, as the cases write it.
pub(super) fn address(listener: &OutboundListener<'_>, egress: &[EgressListener]) -> String {
    match &listener.bind {
        Bind::Ip(ip) => ip.to_string(),
        Bind::Unix(address) => address.to_string(),
        // Of either family where the Sidecar says so.
        Bind::Wildcard => egress
            .get(listener.egress)
            .and_then(|egress| egress.bind.parse().ok())
            .unwrap_or(IpAddr::from([0, 0, 0, 0]))
            .to_string(),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct BindToPort {
    proxy_mode: Option<String>,
    #[serde(default)]
    capture_mode: CaseCaptureMode,
    ingress_real_listener: bool,
    egress_real_listener: bool,
}

fn check_bind_to_port(case: &BindToPort) -> Result<(), String> {
    let mode = mode(case.proxy_mode.as_deref());
    let capture = case.capture_mode.into();
    expect(
        "ingressRealListener",
        &case.ingress_real_listener,
        &capture::ingress_is_real(mode, capture),
    )?;
    expect(
        "egressRealListener",
        &case.egress_real_listener,
        &capture::egress_is_real(mode, capture, ""),
    )
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct EgressBind {
    proxy_mode: Option<String>,
    #[serde(default)]
    capture_mode: CaseCaptureMode,
    bind: Option<String>,
    real_listener: bool,
    address: String,
}

const VIP: &str = "10.96.0.1/32";
const NETWORK: &str = "10.96.0.0/24";

fn check_egress_bind(case: &EgressBind) -> Result<(), String> {
    let at = |protocol: &str, vip: &str, addresses: &[IpAddr]| -> Result<Vec<String>, String> {
        let found = egress_places(case, protocol, vip, addresses)?;
        for (_, real) in &found {
            expect("realListener", &case.real_listener, real)?;
        }
        Ok(found.into_iter().map(|(place, _)| place).collect())
    };
    let (http, tcp) = (at("HTTP", VIP, &[V4])?, at("TCP", VIP, &[V4])?);
    expect("address for unknown protocols", &tcp, &at("", VIP, &[V4])?)?;
    let network = at("TCP", NETWORK, &[V4])?;
    let (v6, dual) = (at("TCP", VIP, &[V6])?, at("TCP", VIP, &[V4, V6])?);
    let got = if http != tcp {
        let of_service = |places: Vec<String>| {
            let words = places.join(" plus ");
            words.replace("10.96.0.1", "the service VIP").replace(
                "0.0.0.0 10.96.0.0/24",
                "wildcard + CIDR match when the address is a CIDR",
            )
        };
        format!(
            "HTTP: {} wildcard; TCP/auto: {} ({})",
            http.join(" plus "),
            of_service(tcp),
            of_service(network)
        )
    } else if tcp == network && tcp == v6 && tcp == dual {
        tcp.join(" plus ")
    } else if dual == [tcp.clone(), v6.clone()].concat() {
        format!(
            "{} ({} on IPv6-only; both on dual stack)",
            tcp.join(" plus "),
            v6.join(" plus ")
        )
    } else {
        format!("{tcp:?} for IPv4, {v6:?} for IPv6, {dual:?} for both, {network:?} for a network")
    };
    expect("address", &case.address, &got)
}

/// Where the case's egress listener sits, and whether it is real, for a service with one virtual
/// address and a workload with these addresses. A network is added to the wildcard address.
fn egress_places(
    case: &EgressBind,
    protocol: &str,
    vip: &str,
    addresses: &[IpAddr],
) -> Result<Vec<(String, bool)>, String> {
    let service = registry::Service {
        hostname: "a.b.c".into(),
        namespace: "b".into(),
        vips: vec![vip.parse().map_err(|error| format!("{vip}: {error}"))?],
        ports: vec![registry::Port {
            number: 80,
            protocol: Protocol::parse(protocol),
            ..registry::Port::default()
        }],
        ..registry::Service::default()
    };
    let registry = Registry::from_services(vec![service], &["*".into()]);
    let bind = case.bind.clone().unwrap_or_default();
    let unix = bind.starts_with(capture::UNIX_PREFIX);
    let egress = [EgressListener {
        port: Some(Port {
            number: if unix { 0 } else { 80 },
            protocol: protocol.into(),
            ..Port::default()
        }),
        bind,
        capture_mode: case.capture_mode.into(),
        hosts: vec!["*/*".into()],
    }];
    let context = Context {
        mesh: &MeshConfig::default(),
        namespace: "b",
        mode: mode(case.proxy_mode.as_deref()),
        addresses,
        unprivileged: false,
    };
    let listeners = listeners::outbound(&context, &registry, &egress);
    let place = |listener: &OutboundListener<'_>| {
        let network = listener.members.iter().find_map(|member| member.network);
        let network = network.map(|network| format!(" {network}"));
        (
            address(listener, &egress) + &network.unwrap_or_default(),
            listener.real,
        )
    };
    Ok(listeners.iter().map(place).collect())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct IngressBind {
    bind: Option<IpAddr>,
    #[serde(rename = "globalUnicastIP")]
    global_unicast_ip: Option<IpAddr>,
    ip_mode: Option<IpMode>,
    address: String,
}

#[derive(Clone, Copy, Deserialize)]
enum IpMode {
    IPv4,
    IPv6,
    Dual,
}

fn check_ingress_bind(case: &IngressBind) -> Result<(), String> {
    // Addresses that give the families, and of which none is global unicast.
    let v4 = IpAddr::from([169, 254, 0, 1]);
    let v6 = IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, 1]);
    let mut addresses = match case.ip_mode {
        None => Vec::new(),
        Some(IpMode::IPv4) => vec![v4],
        Some(IpMode::IPv6) => vec![v6],
        Some(IpMode::Dual) => vec![v4, v6],
    };
    addresses.extend(case.global_unicast_ip);
    let got: Vec<String> = capture::ingress_binds(case.bind, &addresses)
        .iter()
        .map(IpAddr::to_string)
        .collect();
    expect("address", &case.address, &got.join(" plus "))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Forwarding {
    #[serde(default, rename = "podIPs")]
    pod_ips: Vec<IpAddr>,
    default_endpoint: Option<String>,
    forward_to: String,
    upstream_source_bind: Option<IpAddr>,
}

fn check_forwarding(case: &Forwarding) -> Result<(), String> {
    let endpoint = case.default_endpoint.as_deref().unwrap_or_default();
    let forward = forward::forward(endpoint, &case.pod_ips).ok_or("it was refused")?;
    let got = match &forward.target {
        Target::Tcp(address) => address.to_string(),
        Target::Unix(UnixAddr::Path(path)) => path.clone(),
        Target::Unix(UnixAddr::Abstract(name)) => format!("@{name}"),
        Target::Original if endpoint.is_empty() => {
            "original destination (pod IP of the connection, listener port)".into()
        }
        Target::Original => "original destination (port in the endpoint is ignored)".into(),
    };
    expect("forwardTo", &case.forward_to, &got)?;
    expect(
        "upstreamSourceBind",
        &case.upstream_source_bind,
        &forward.source,
    )
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct InboundClusters {
    name: String,
    #[serde(rename = "podIP")]
    pod_ip: Option<IpAddr>,
    #[serde(default, deserialize_with = "or_default")]
    ingress: Vec<ClusterIngress>,
    expect_clusters: BTreeMap<String, Endpoints>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ClusterIngress {
    port: u32,
    default_endpoint: Option<String>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(untagged)]
enum Endpoints {
    Listed(Vec<String>),
    Text(String),
}

fn check_clusters(case: &InboundClusters) -> Result<(), String> {
    let got = match case.pod_ip {
        Some(ip) => declared_clusters(&case.ingress, ip)?,
        None => derived_clusters(&case.name)?,
    };
    expect("clusters", &case.expect_clusters, &got)
}

fn declared_clusters(
    ingress: &[ClusterIngress],
    ip: IpAddr,
) -> Result<BTreeMap<String, Endpoints>, String> {
    let ingress = ingress.iter().map(|ingress| IngressListener {
        port: Port {
            number: ingress.port,
            ..Port::default()
        },
        default_endpoint: ingress.default_endpoint.clone().unwrap_or_default(),
        ..IngressListener::default()
    });
    let sidecar = Sidecar {
        ingress: ingress.collect(),
        ..Sidecar::default()
    };
    let listeners = inbound::declared(&sidecar, InterceptionMode::Redirect, &[ip])
        .map(|(_, listener)| listener)
        .collect::<Result<Vec<_>, _>>()?;
    Ok(clusters(&listeners))
}

/// Cases without a Sidecar say what there is in their name only, in clauses.
fn derived_clusters(name: &str) -> Result<BTreeMap<String, Endpoints>, String> {
    let mut mesh = MeshConfig::default();
    let mut mode = InterceptionMode::Redirect;
    let (mut services, mut target) = (1, 8080);
    for clause in name.split(", ") {
        match clause.rsplit_once(' ').unwrap_or(("", clause)) {
            ("no", "Sidecar")
            | ("mesh inboundTrafficPolicy", "PASSTHROUGH")
            | ("mesh inboundTrafficPolicy default", "(PASSTHROUGH)") => {}
            ("mesh inboundTrafficPolicy", "LOCALHOST") => mesh.inbound_localhost = true,
            ("proxy mode", text) => mode = self::mode(Some(text)),
            ("Service targetPort", port) => {
                target = port
                    .parse()
                    .map_err(|error| format!("{clause:?}: {error}"))?;
            }
            ("two Services on the same", "targetPort") => services = 2,
            _ => return Err(format!("{clause:?} is not understood")),
        }
    }
    let labels: BTreeMap<String, String> = [("app".to_owned(), "a".to_owned())].into();
    let service = |age| {
        let spec = Service {
            selector: labels.clone(),
            ports: vec![ServicePort {
                port: 80,
                target: TargetPort::Number(target),
                ..ServicePort::default()
            }],
            ..Service::default()
        };
        // Neither the alphabet nor the order in the snapshot is that of age.
        object("ns", &format!("s{}", services - age), age, spec)
    };
    let snapshot = Snapshot {
        services: (0..services).rev().map(service).collect(),
        ..Snapshot::default()
    };
    let registry = Registry::new(&snapshot);
    let listeners = inbound::derived(&mesh, &registry, mode, "ns", &labels, &BTreeMap::new(), &[]);
    let mut got = clusters(&listeners);
    if services > 1 {
        let oldest = format!("s{services}.ns.svc.cluster.local");
        let named: Vec<_> = listeners.iter().map(|l| l.service.as_deref()).collect();
        expect(
            "services that name a cluster",
            &vec![Some(&*oldest)],
            &named,
        )?;
        for endpoints in got.values_mut() {
            *endpoints = Endpoints::Text("one cluster; first (oldest) Service names it".into());
        }
    }
    Ok(got)
}

fn clusters(listeners: &[inbound::InboundListener]) -> BTreeMap<String, Endpoints> {
    let endpoints = |target: &Target| match target {
        Target::Tcp(address) => Endpoints::Listed(vec![SocketAddr::to_string(address)]),
        Target::Unix(UnixAddr::Path(path)) => Endpoints::Listed(vec![path.clone()]),
        Target::Unix(UnixAddr::Abstract(name)) => Endpoints::Listed(vec![format!("@{name}")]),
        Target::Original => Endpoints::Text("ORIGINAL_DST (no endpoint)".into()),
    };
    listeners
        .iter()
        .map(|l| {
            (
                format!("inbound|{}||", l.port),
                endpoints(&l.forward.target),
            )
        })
        .collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Privileged {
    #[serde(default)]
    unprivileged: bool,
    proxy_mode: Option<String>,
    ports: Ports,
    listener: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Ports {
    One(u16),
    Text(String),
}

impl Ports {
    fn range(&self) -> Result<RangeInclusive<u16>, String> {
        let text = match self {
            Self::One(port) => return Ok(*port..=*port),
            Self::Text(text) => text.as_str(),
        };
        let port = |port: &str| {
            port.parse::<u16>()
                .map_err(|e| format!("ports {text:?}: {e}"))
        };
        if text == "any" {
            Ok(1..=u16::MAX)
        } else if let Some(least) = text.strip_prefix(">=") {
            Ok(port(least)?..=u16::MAX)
        } else if let Some((least, greatest)) = text.split_once("..") {
            Ok(port(least)?..=port(greatest)?)
        } else {
            port(text).map(|port| port..=port)
        }
    }
}

fn check_privileged(case: &Privileged) -> Result<(), String> {
    let range = case.ports.range()?;
    if range.is_empty() {
        return Err("there is no port in the range".into());
    }
    let mode = mode(case.proxy_mode.as_deref());
    let ingress = capture::ingress_is_real(mode, CaptureMode::Default);
    let egress = capture::egress_is_real(mode, CaptureMode::Default, "");
    for port in range {
        for (what, real) in [("ingress", ingress), ("egress", egress)] {
            let got = capture::may_bind(case.unprivileged, real, port);
            expect(
                &format!("{what} listener on port {port}"),
                &case.listener,
                &got,
            )?;
        }
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Virtual {
    mode: Option<String>,
    #[serde(rename = "virtualInbound")]
    inbound: bool,
    #[serde(rename = "virtualOutbound")]
    outbound: bool,
}

fn check_virtual(case: &Virtual) -> Result<(), String> {
    let got = capture::captures(mode(case.mode.as_deref()));
    expect("virtualInbound", &case.inbound, &got)?;
    expect("virtualOutbound", &case.outbound, &got)
}
