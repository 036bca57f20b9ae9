//! `capture-cases.yaml`: real listener or captured, bind addresses, where ingress leads.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;

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
        listeners::{self, Bind, Context},
        protocol::Protocol,
        registry,
    },
};

use super::{CaseResult, Malformed, expect, object, read, visibility::CaseCaptureMode};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    #[serde(default)]
    bind_to_port: Vec<Value>,
    #[serde(default)]
    egress_bind: Vec<Value>,
    #[serde(default)]
    ingress_bind_when_real: Vec<Value>,
    #[serde(default)]
    default_endpoint_forwarding: Vec<Value>,
    #[serde(default)]
    inbound_clusters: Vec<Value>,
    #[serde(default)]
    privileged_ports: Section,
    #[serde(default)]
    virtual_listeners: Section,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    #[serde(default, rename = "source")]
    _source: IgnoredAny,
    #[serde(default)]
    cases: Vec<Value>,
}

/// Runs the file.
///
/// # Errors
/// When the text is no such file.
pub fn run(text: &str) -> Result<Vec<CaseResult>, Malformed> {
    let file: File = read(text)?;
    Ok([
        super::run("bindToPort", &file.bind_to_port, check_bind_to_port),
        super::run("egressBind", &file.egress_bind, check_egress_bind),
        super::run(
            "ingressBindWhenReal",
            &file.ingress_bind_when_real,
            check_ingress_bind,
        ),
        super::run(
            "defaultEndpointForwarding",
            &file.default_endpoint_forwarding,
            check_forwarding,
        ),
        super::run("inboundClusters", &file.inbound_clusters, check_clusters),
        super::run(
            "privilegedPorts",
            &file.privileged_ports.cases,
            check_privileged,
        ),
        super::run(
            "virtualListeners",
            &file.virtual_listeners.cases,
            check_virtual,
        ),
    ]
    .concat())
}

const V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 1, 5));
const V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 5));

/// As Istio reads it: what is not a mode is REDIRECT.
fn mode(text: &str) -> InterceptionMode {
    capture::interception_mode(text).unwrap_or(InterceptionMode::Redirect)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct BindToPort {
    proxy_mode: String,
    capture_mode: CaseCaptureMode,
    ingress_real_listener: bool,
    egress_real_listener: bool,
}

fn check_bind_to_port(case: &BindToPort) -> Result<(), String> {
    let (mode, capture) = (mode(&case.proxy_mode), case.capture_mode.into());
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
    proxy_mode: String,
    capture_mode: CaseCaptureMode,
    bind: Option<String>,
    real_listener: bool,
    address: String,
}

/// What the cases say where the address depends on the service, and on the families.
const BY_SERVICE: &str = "HTTP: 0.0.0.0 wildcard; TCP/auto: the service VIP (wildcard + CIDR \
                          match when the address is a CIDR)";
const BY_FAMILY: &str = "127.0.0.1 (::1 on IPv6-only; both on dual stack)";

fn check_egress_bind(case: &EgressBind) -> Result<(), String> {
    let places = |protocol: &str, vip: &str, addresses: &[IpAddr]| -> Result<_, String> {
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
        let number = if bind.starts_with(capture::UNIX_PREFIX) {
            0
        } else {
            80
        };
        let egress = EgressListener {
            port: Some(Port {
                number,
                protocol: protocol.into(),
                ..Port::default()
            }),
            bind,
            capture_mode: case.capture_mode.into(),
            hosts: vec!["*/*".into()],
        };
        let context = Context {
            mesh: &MeshConfig::default(),
            namespace: "b",
            mode: mode(&case.proxy_mode),
            addresses,
            unprivileged: false,
        };
        let places: Vec<String> = listeners::outbound(&context, &registry, &[egress])
            .iter()
            .map(|listener| {
                let bind = match &listener.bind {
                    Bind::Wildcard => "wildcard".into(),
                    Bind::Ip(ip) => ip.to_string(),
                    Bind::Unix(address) => address.to_string(),
                };
                let net = listener.members.iter().find_map(|member| member.network);
                let net = net.map(|net| format!(" {net}")).unwrap_or_default();
                let real = if listener.real { " real" } else { "" };
                format!("{bind}{net}{real}")
            })
            .collect();
        Ok(places.join(", "))
    };
    let check = |protocol, vip, addresses: &[IpAddr], expected: &str| {
        let what = format!("address for {protocol} {vip} {addresses:?}");
        expect(
            &what,
            &expected.to_owned(),
            &places(protocol, vip, addresses)?,
        )
    };
    let real = if case.real_listener { " real" } else { "" };
    match case.address.as_str() {
        BY_SERVICE => {
            check("HTTP", "10.96.0.1/32", &[V4], &format!("wildcard{real}"))?;
            check("TCP", "10.96.0.1/32", &[V4], &format!("10.96.0.1{real}"))?;
            check("", "10.96.0.1/32", &[V4], &format!("10.96.0.1{real}"))?;
            check(
                "TCP",
                "10.96.0.0/24",
                &[V4],
                &format!("wildcard 10.96.0.0/24{real}"),
            )
        }
        BY_FAMILY => {
            for protocol in ["HTTP", "TCP"] {
                let check = |addresses: &[IpAddr], expected: &str| {
                    check(protocol, "10.96.0.1/32", addresses, expected)
                };
                check(&[V4], &format!("127.0.0.1{real}"))?;
                check(&[V6], &format!("::1{real}"))?;
                check(&[V4, V6], &format!("127.0.0.1{real}, ::1{real}"))?;
            }
            Ok(())
        }
        address => {
            for protocol in ["HTTP", "TCP"] {
                check(protocol, "10.96.0.1/32", &[V4], &format!("{address}{real}"))?;
            }
            Ok(())
        }
    }
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
    #[serde(rename = "podIPs")]
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
    #[serde(default, rename = "source")]
    _source: IgnoredAny,
    #[serde(rename = "podIP")]
    pod_ip: Option<IpAddr>,
    #[serde(default)]
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
    if let Some(ip) = case.pod_ip {
        let ingress = case.ingress.iter().map(|ingress| IngressListener {
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
        return expect("clusters", &case.expect_clusters, &clusters(&listeners));
    }
    // Cases without a Sidecar say what they are about in their name only.
    let mut mesh = MeshConfig::default();
    let (services, text) = match case.name.as_str() {
        "two Services on the same targetPort" => (2, None),
        name if name.starts_with("no Sidecar, Service targetPort 8080, ") => {
            mesh.inbound_localhost = name.ends_with("inboundTrafficPolicy LOCALHOST");
            (1, Some(()))
        }
        _ => return Err("neither podIP nor a name that says what is there".into()),
    };
    let labels: BTreeMap<String, String> = [("app".to_owned(), "a".to_owned())].into();
    let snapshot = Snapshot {
        services: (0..services)
            .map(|age| {
                let port = ServicePort {
                    port: 80,
                    target: TargetPort::Number(8080),
                    ..ServicePort::default()
                };
                let selector = labels.clone();
                let spec = Service {
                    selector,
                    ports: vec![port],
                    ..Service::default()
                };
                object(
                    "ns",
                    if age == 0 { "z-oldest" } else { "a-newest" },
                    age,
                    spec,
                )
            })
            .collect(),
        ..Snapshot::default()
    };
    let registry = Registry::new(&snapshot);
    let mode = InterceptionMode::Redirect;
    let listeners = inbound::derived(&mesh, &registry, mode, "ns", &labels, &BTreeMap::new());
    let mut got = clusters(&listeners);
    if text.is_none() {
        let service = listeners
            .first()
            .and_then(|listener| listener.service.clone());
        expect(
            "service",
            &Some("z-oldest.ns.svc.cluster.local".to_owned()),
            &service,
        )?;
        expect("clusters", &1, &listeners.len())?;
        let text = "one cluster; first (oldest) Service names it".to_owned();
        for endpoints in got.values_mut() {
            *endpoints = Endpoints::Text(text.clone());
        }
    }
    expect("clusters", &case.expect_clusters, &got)
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
    unprivileged: bool,
    proxy_mode: String,
    ports: String,
    listener: bool,
}

fn check_privileged(case: &Privileged) -> Result<(), String> {
    let ports: &[u16] = match case.ports.as_str() {
        "any" => &[1, 80, 1023, 1024, 8080],
        "1..1023" => &[1, 80, 1023],
        ">=1024" => &[1024, 8080],
        other => return Err(format!("the ports {other:?} are not understood")),
    };
    let mode = mode(&case.proxy_mode);
    let ingress = capture::ingress_is_real(mode, CaptureMode::Default);
    let egress = capture::egress_is_real(mode, CaptureMode::Default, "");
    for port in ports {
        for (what, real) in [("ingress", ingress), ("egress", egress)] {
            let got = capture::may_bind(case.unprivileged, real, *port);
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
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Virtual {
    mode: String,
    #[serde(rename = "virtualInbound")]
    inbound: bool,
    #[serde(rename = "virtualOutbound")]
    outbound: bool,
}

fn check_virtual(case: &Virtual) -> Result<(), String> {
    let got = capture::captures(mode(&case.mode));
    expect("virtualInbound", &case.inbound, &got)?;
    expect("virtualOutbound", &case.outbound, &got)
}
