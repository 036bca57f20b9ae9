//! `egress-visibility-cases.yaml`: which services are seen, and which egress listeners exist.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, de::IgnoredAny};

use crate::{
    model::{
        mesh::MeshConfig,
        sidecar::{self, CaptureMode, EgressListener, Sidecar},
        virtual_service,
    },
    resolve::{
        Registry,
        listeners::{self, Context},
        protocol::Protocol,
        registry::{Discovery, Port, Provider, Service},
        visibility::{self, Features, Selected, VirtualService},
    },
};

use super::{
    CaseResult, Malformed,
    capture::{address, mode},
    expect, or_default,
};

/// Runs the file.
///
/// # Errors
/// When the text is no such file.
pub fn run(text: &str) -> Result<Vec<CaseResult>, Malformed> {
    super::sections(
        text,
        &[
            ("cases", |name, cases| super::run(name, cases, check)),
            ("lds", |name, cases| {
                super::run(name, cases, check_listeners)
            }),
        ],
    )
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Case {
    #[serde(default, rename = "name")]
    _name: IgnoredAny,
    config_namespace: String,
    #[serde(default, deserialize_with = "or_default")]
    pre_sorted: bool,
    #[serde(default, deserialize_with = "or_default")]
    features: BTreeMap<String, bool>,
    #[serde(default, deserialize_with = "or_default")]
    services: Vec<CaseService>,
    #[serde(default, deserialize_with = "or_default")]
    virtual_services: Vec<CaseVirtualService>,
    egress: Option<Vec<CaseEgress>>,
    expect: Expect,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CaseService {
    hostname: String,
    namespace: String,
    #[serde(default, deserialize_with = "or_default")]
    name: String,
    address: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    ports: Vec<CasePort>,
    registry: Option<CaseRegistry>,
    #[serde(default, deserialize_with = "or_default")]
    export_to: BTreeSet<String>,
    #[serde(default, deserialize_with = "or_default")]
    creation_time: i64,
    resolution: Option<CaseResolution>,
    #[serde(default, deserialize_with = "or_default")]
    label_selectors: BTreeMap<String, String>,
}

#[derive(Deserialize)]
enum CaseRegistry {
    Kubernetes,
    External,
}

/// Istio's names.
#[derive(Deserialize)]
enum CaseResolution {
    #[serde(rename = "ClientSideLB")]
    ClientSide,
    #[serde(rename = "DNSLB")]
    Dns,
    #[serde(rename = "DNSRoundRobinLB")]
    DnsRoundRobin,
    Passthrough,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CasePort {
    #[serde(default, deserialize_with = "or_default")]
    name: String,
    port: u16,
    #[serde(default, deserialize_with = "or_default")]
    protocol: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseVirtualService {
    #[serde(default, rename = "name")]
    _name: IgnoredAny,
    namespace: String,
    hosts: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    http: Vec<Route>,
    #[serde(default, deserialize_with = "or_default")]
    tcp: Vec<Route>,
    #[serde(default, deserialize_with = "or_default")]
    tls: Vec<Route>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Route {
    #[serde(default, deserialize_with = "or_default")]
    r#match: Vec<Match>,
    mirror: Option<Destination>,
    #[serde(default, deserialize_with = "or_default")]
    mirrors: Vec<RouteDestination>,
    #[serde(default, rename = "route", deserialize_with = "or_default")]
    weighted: Vec<RouteDestination>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Match {
    #[serde(default, deserialize_with = "or_default")]
    source_namespace: String,
    /// Does not decide what is seen.
    #[serde(default, rename = "gateways")]
    _gateways: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteDestination {
    destination: Destination,
    /// Does not decide what is seen.
    #[serde(default, rename = "weight")]
    _weight: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Destination {
    host: String,
    port: Option<DestinationPort>,
    /// Does not decide what is seen.
    #[serde(default, rename = "subset")]
    _subset: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DestinationPort {
    number: u16,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CaseEgress {
    port: Option<EgressPort>,
    #[serde(default, deserialize_with = "or_default")]
    bind: String,
    #[serde(default, deserialize_with = "or_default")]
    capture_mode: CaseCaptureMode,
    hosts: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EgressPort {
    number: u32,
    #[serde(default, deserialize_with = "or_default")]
    protocol: String,
    #[serde(default, deserialize_with = "or_default")]
    name: String,
}

/// `captureMode` as the cases write it.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum CaseCaptureMode {
    #[default]
    Default,
    Iptables,
    None,
}

impl From<CaseCaptureMode> for CaptureMode {
    fn from(mode: CaseCaptureMode) -> Self {
        match mode {
            CaseCaptureMode::Default => Self::Default,
            CaseCaptureMode::Iptables => Self::Iptables,
            CaseCaptureMode::None => Self::None,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Expect {
    scope: Option<Vec<Seen>>,
    #[serde(default, deserialize_with = "or_default")]
    order: Order,
    per_listener: Option<Vec<Vec<Seen>>>,
}

#[derive(Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Order {
    #[default]
    Exact,
    Any,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seen {
    hostname: String,
    namespace: String,
    #[serde(default, deserialize_with = "or_default")]
    name: String,
    #[serde(default, deserialize_with = "or_default")]
    ports: Vec<u16>,
}

impl From<&Selected<'_>> for Seen {
    fn from(selected: &Selected<'_>) -> Self {
        Self {
            hostname: selected.service.hostname.to_string(),
            namespace: selected.service.namespace.to_string(),
            name: selected.service.name.clone(),
            ports: selected.ports.iter().map(|port| port.number).collect(),
        }
    }
}

fn check(case: &Case) -> Result<(), String> {
    let mut services: Vec<Service> = case
        .services
        .iter()
        .map(service)
        .collect::<Result<_, _>>()?;
    if !case.pre_sorted {
        services.sort_by(|a, b| {
            (a.created, &a.name, &a.namespace).cmp(&(b.created, &b.name, &b.namespace))
        });
    }
    let registry = Registry::from_services(services, &["*".to_owned()]);
    let namespace = &case.config_namespace;
    let sidecar = Sidecar {
        egress: case.egress.iter().flatten().map(egress).collect(),
        ..Sidecar::default()
    };
    let egress = visibility::egress(Some(&sidecar));
    let in_order = |mut seen: Vec<Seen>| {
        if case.expect.order == Order::Any {
            seen.sort();
        }
        seen
    };
    let seen = |selected: &[Selected<'_>]| in_order(selected.iter().map(Seen::from).collect());
    let Expect {
        scope,
        per_listener,
        ..
    } = &case.expect;
    if scope.is_none() && per_listener.is_none() {
        return Err("it expects neither scope nor perListener".into());
    }
    if let Some(expected) = per_listener {
        let expected: Vec<_> = expected.iter().cloned().map(in_order).collect();
        let got: Vec<_> = egress
            .iter()
            .map(|listener| seen(&visibility::exposed(&registry, namespace, listener)))
            .collect();
        expect("perListener", &expected, &got)?;
    }
    let Some(scope) = scope else {
        return Ok(());
    };
    let virtual_services: Vec<VirtualService> = case
        .virtual_services
        .iter()
        .map(|service| virtual_service(service, namespace))
        .collect();
    let features = features(&case.features)?;
    let got = visibility::scope(&registry, namespace, &egress, &virtual_services, features);
    expect("scope", &in_order(scope.clone()), &seen(&got))
}

fn service(case: &CaseService) -> Result<Service, String> {
    let vips = match case.address.as_deref() {
        None | Some("") => Vec::new(),
        Some(text) => match text.parse::<std::net::IpAddr>() {
            // How Istio writes that there is none.
            Ok(ip) if ip.is_unspecified() => Vec::new(),
            Ok(ip) => vec![ip.into()],
            Err(_) => vec![text.parse().map_err(|error| format!("{text:?}: {error}"))?],
        },
    };
    Ok(Service {
        hostname: case.hostname.as_str().into(),
        namespace: case.namespace.as_str().into(),
        name: case.name.clone(),
        created: case.creation_time,
        provider: match &case.registry {
            Some(CaseRegistry::Kubernetes) => Provider::Kubernetes,
            Some(CaseRegistry::External) | None => Provider::External,
        },
        discovery: match &case.resolution {
            Some(CaseResolution::Dns) => Discovery::Dns,
            Some(CaseResolution::DnsRoundRobin) => Discovery::DnsRoundRobin,
            Some(CaseResolution::Passthrough) => Discovery::Passthrough,
            Some(CaseResolution::ClientSide) | None => Discovery::Listed,
        },
        vips,
        ports: case
            .ports
            .iter()
            .map(|port| Port {
                number: port.port,
                name: port.name.clone(),
                protocol: Protocol::parse(&port.protocol),
                ..Port::default()
            })
            .collect(),
        export_to: case.export_to.clone(),
        selector: case.label_selectors.clone(),
        ..Service::default()
    })
}

/// The virtual service for clients in `namespace`.
fn virtual_service(case: &CaseVirtualService, namespace: &str) -> VirtualService {
    let mut service = virtual_service::VirtualService::default();
    for (routes, have_sources) in [(&case.http, true), (&case.tcp, false), (&case.tls, false)] {
        for route in routes {
            let sources = route.r#match.iter().map(|of| of.source_namespace.clone());
            let sources = sources.filter(|source| have_sources && !source.is_empty());
            let weighted = route.weighted.iter().chain(&route.mirrors);
            let destinations = weighted.map(|to| &to.destination).chain(&route.mirror);
            service.add_route(
                sources.collect(),
                destinations.map(|Destination { host, port, .. }| {
                    (host.as_str(), port.as_ref().map(|port| port.number))
                }),
            );
        }
    }
    VirtualService {
        namespace: case.namespace.clone(),
        hosts: case.hosts.clone(),
        destinations: service.destinations_from(namespace),
    }
}

/// Istio's switches that decide what is seen, with the values that the rules here follow.
const FIXED_FEATURES: [(&str, bool); 3] = [
    ("ENABLE_LAZY_SIDECAR_EVALUATION", true),
    ("PILOT_ALLOW_SIDECAR_SERVICE_INBOUND_LISTENER_MERGE", false),
    ("PILOT_UNIFIED_SIDECAR_SCOPE", true),
];

fn features(case: &BTreeMap<String, bool>) -> Result<Features, String> {
    let mut features = Features::default();
    for (name, value) in case {
        if name == "PILOT_SIDECAR_PICK_BEST_SERVICE_NAMESPACE" {
            features.pick_best_namespace = *value;
        } else if !FIXED_FEATURES.contains(&(name.as_str(), *value)) {
            return Err(format!("the feature {name}: {value} is not understood"));
        }
    }
    Ok(features)
}

fn egress(case: &CaseEgress) -> EgressListener {
    EgressListener {
        port: case.port.as_ref().map(|port| sidecar::Port {
            number: port.number,
            protocol: port.protocol.clone(),
            name: port.name.clone(),
        }),
        bind: case.bind.clone(),
        capture_mode: case.capture_mode.into(),
        hosts: case.hosts.clone(),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ListenersCase {
    #[serde(default, deserialize_with = "or_default")]
    name: String,
    config_namespace: String,
    interception_mode: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    services: Vec<CaseService>,
    egress: Option<Vec<CaseEgress>>,
    expect_listeners: Vec<ExpectedListener>,
    #[serde(default, deserialize_with = "or_default")]
    note: String,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ExpectedListener {
    bind: String,
    port: u16,
    bind_to_port: bool,
    hosts: BTreeSet<String>,
}

/// How the cases say, in prose, that the proxy may not bind ports below 1024.
const UNPRIVILEGED: [&str; 2] = ["ISTIO_META_UNPRIVILEGED_POD=true", "unprivileged proxy"];

fn check_listeners(case: &ListenersCase) -> Result<(), String> {
    let services: Vec<Service> = case
        .services
        .iter()
        .map(service)
        .collect::<Result<_, _>>()?;
    let registry = Registry::from_services(services, &["*".to_owned()]);
    let context = Context {
        mesh: &MeshConfig::default(),
        namespace: &case.config_namespace,
        mode: mode(case.interception_mode.as_deref()),
        addresses: &[],
        unprivileged: UNPRIVILEGED
            .iter()
            .any(|words| case.name.contains(words) || case.note.contains(words)),
    };
    let sidecar = Sidecar {
        egress: case.egress.iter().flatten().map(egress).collect(),
        ..Sidecar::default()
    };
    let egress = visibility::egress(Some(&sidecar));
    let got = listeners::outbound(&context, &registry, &egress);
    let got = got.iter().map(|listener| ExpectedListener {
        bind: address(listener, &egress),
        port: listener.port,
        bind_to_port: listener.real,
        hosts: listener
            .members
            .iter()
            .map(|member| member.service.hostname.to_string())
            .collect(),
    });
    // Which listeners exist, in whatever order.
    let expected: BTreeSet<_> = case.expect_listeners.iter().collect();
    let got: Vec<_> = got.collect();
    expect("listeners", &expected, &got.iter().collect())
}
