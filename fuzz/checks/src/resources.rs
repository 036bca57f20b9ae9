//! Resources of the right shape, with contents that are mostly plausible: what the fuzzer makes
//! of its bytes to come past validation.

use std::{collections::BTreeMap, fmt};

use arbitrary::{Arbitrary, Result, Unstructured};
use serde::Serialize;
use serde_json::{Value, json};

/// A file of resources. Displayed as YAML, and so debugged: a fuzzer's finding is a file.
#[derive(Arbitrary)]
pub struct Resources {
    sidecars: Vec<Sidecar>,
    service_entries: Vec<ServiceEntry>,
    services: Vec<Service>,
    workloads: Vec<Workload>,
    mesh: Option<Mesh>,
}

impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const ISTIO: &str = "networking.istio.io/v1";
        let mut number = 0;
        let mut document = |kind, api_version, namespace: &Namespace, annotations, spec| {
            number += 1;
            let name = format!("r{number}");
            let document = without_nulls(json!({
                "apiVersion": api_version,
                "kind": kind,
                "metadata": {"name": name, "namespace": namespace, "annotations": annotations},
                "spec": spec,
            }));
            // JSON is YAML; on several lines, so that places in it differ.
            writeln!(f, "---\n{document:#}")
        };
        for sidecar in &self.sidecars {
            let Sidecar { namespace, spec } = sidecar;
            document("Sidecar", ISTIO, namespace, json!({}), json!(spec))?;
        }
        for entry in &self.service_entries {
            let ServiceEntry { namespace, spec } = entry;
            document("ServiceEntry", ISTIO, namespace, json!({}), json!(spec))?;
        }
        for service in &self.services {
            let Service {
                namespace,
                annotations,
                spec,
            } = service;
            document("Service", "v1", namespace, json!(annotations), json!(spec))?;
        }
        for workload in &self.workloads {
            let Workload {
                namespace,
                annotations,
                spec,
            } = workload;
            document(
                "WorkloadEntry",
                ISTIO,
                namespace,
                json!(annotations),
                json!(spec),
            )?;
        }
        match &self.mesh {
            Some(mesh) => writeln!(f, "---\n{:#}", without_nulls(json!(mesh))),
            None => Ok(()),
        }
    }
}

/// A field that is null is as good as absent.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name, without_nulls(value)))
            .collect(),
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        value => value,
    }
}

impl fmt::Debug for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Texts of one kind: one of those that mean something, or any.
macro_rules! texts {
    ($($(#[$doc:meta])* $name:ident [$($text:literal),* $(,)?];)*) => {
        $(
            $(#[$doc])*
            #[derive(Serialize, PartialEq, Eq, PartialOrd, Ord)]
            struct $name(String);

            impl<'a> Arbitrary<'a> for $name {
                fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
                    text(u, &[$($text),*]).map(Self)
                }
            }
        )*
    };
}

fn text(u: &mut Unstructured<'_>, known: &[&str]) -> Result<String> {
    if u.ratio(1, 8)? {
        u.arbitrary()
    } else {
        u.choose(known).map(|text| (*text).to_owned())
    }
}

texts! {
    Namespace ["prod", "other", "istio-system"];
    /// An entry of `hosts` of an egress listener.
    EgressHost [
        "*/*", "./*", "~/*", "prod/*", "other/*", "~./*", "~other/*", "*/a.example.com", "prod/*.example.com",
        "*/*.com", "*/r5.prod.svc.cluster.local", "./r4.prod.svc.cluster.local", "~/a.example.com",
        "*/web.prod.svc.cluster.local",
    ];
    /// A host of a service entry.
    ServiceHost [
        "a.example.com", "b.example.com", "*.example.com", "*.com", "web.prod.svc.cluster.local", "c.org",
        "A.example.com", "a.example.com.",
    ];
    /// Where a listener sits.
    Bind [
        "", "127.0.0.1", "0.0.0.0", "::", "::1", "10.0.0.1", "fd00::1", "::ffff:10.0.0.1",
        "fe80::1%eth0", "224.0.0.1", "unix:///run/a.sock", "unix://@a", "10.96.0.1",
    ];
    /// `defaultEndpoint`.
    DefaultEndpoint [
        "", ":80", "127.0.0.1:8080", "[::1]:8080", "0.0.0.0:80", "[::]:80", "::1:80", "unix:///run/b.sock",
        "unix://@b", "127.0.0.1:0", "127.0.0.1:080", "127.0.0.1:+80", "unix://",
    ];
    /// An address or network.
    Address [
        "10.96.0.1", "10.96.0.2", "10.96.0.0/16", "10.96.1.0/24", "10.96.1.7/24", "fd00::2", "fd00::/64",
        "::ffff:10.96.0.3", "::ffff:10.96.0.0/112", "0.0.0.0/0", "::/0", "240.240.0.1", "0.0.0.0", "127.0.0.1",
        "10.0.0.1", "fd00::1", "127.0.0.0/8", "::ffff:0:0/96", "::/80",
    ];
    /// Where an endpoint is.
    EndpointAddress [
        "10.0.0.1", "10.0.0.9", "fd00::9", "::ffff:10.0.0.9", "unix:///run/c.sock", "c.org", "a.example.com",
        "127.0.0.1", "::1", "0.0.0.0", "fe80::9%eth0", "",
    ];
    Protocol ["HTTP", "TCP", "MYSQL", "TLS", "HTTPS", "HTTP_PROXY", "GRPC", "UDP", "", "http2", "REDIS"];
    Transport ["TCP", "UDP", "SCTP"];
    PortName ["http", "tcp", "a", "http-web", "mysql-b", ""];
    CaptureMode ["DEFAULT", "IPTABLES", "NONE"];
    PolicyMode ["REGISTRY_ONLY", "ALLOW_ANY"];
    Resolution ["NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN"];
    Location ["MESH_INTERNAL", "MESH_EXTERNAL"];
    ExportTo ["*", ".", "~", "prod", "other"];
    LabelKey ["app", "tier"];
    LabelValue ["a", "b", ""];
    ClusterIp ["10.96.0.1", "10.96.0.4", "fd00::4", "None", "", "::ffff:10.96.0.4"];
    InterceptionMode ["REDIRECT", "TPROXY", "NONE"];
    ServiceType ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"];
    Annotation [
        "capture.sidecar-agent.io/cgroup", "capture.sidecar-agent.io/netns", "capture.sidecar-agent.io/root",
        "capture.sidecar-agent.io/addresses", "capture.sidecar-agent.io/proxy",
        "capture.sidecar-agent.io/proxy-uid", "capture.sidecar-agent.io/proxy-cgroup",
        "traffic.sidecar.istio.io/includeInboundPorts", "traffic.sidecar.istio.io/excludeInboundPorts",
        "traffic.sidecar.istio.io/includeOutboundIPRanges", "traffic.sidecar.istio.io/excludeOutboundIPRanges",
        "traffic.sidecar.istio.io/includeOutboundPorts", "traffic.sidecar.istio.io/excludeOutboundPorts",
        "sidecar.istio.io/interceptionMode", "status.sidecar.istio.io/port", "networking.istio.io/exportTo",
        "traffic.sidecar.istio.io/excludeInterfaces", "istio.io/reroute-virtual-interfaces",
        "traffic.sidecar.istio.io/kubevirtInterfaces", "proxy.istio.io/config", "capture.sidecar-agent.io/proxy-gid",
        "capture.sidecar-agent.io/outbound-owner-groups", "capture.sidecar-agent.io/outbound-owner-groups-exclude",
        "capture.sidecar-agent.io/outbound-ipv4-loopback-cidr", "capture.sidecar-agent.io/dns-capture",
        "capture.sidecar-agent.io/dns-capture-all", "capture.sidecar-agent.io/dns-servers",
        "capture.sidecar-agent.io/dual-stack", "capture.sidecar-agent.io/drop-invalid",
        "capture.sidecar-agent.io/inbound-tunnel-port",
    ];
    AnnotationValue [
        "a.slice", "/a.slice/b/", "a.slice/b", "/", "none", "external", "1337", "0", "*", "80,443", "15001",
        "10.96.0.0/16", "10.96.0.0/16,fd00::/64", "::ffff:10.96.0.0/112", "127.0.0.0/8", "::/0", "0.0.0.0/0",
        "10.0.0.1,fd00::1", "::ffff:10.0.0.1", "/run/netns/a", "NONE", "TPROXY", "REDIRECT", "., prod", "",
        "true", "false", "eth0,net+", "lo", "127.0.0.1/8", "{statusPort: 0, proxyMetadata: {ISTIO_DUAL_STACK: 'true'}}",
    ];
    Variable [
        "ISTIO_META_DNS_CAPTURE", "ISTIO_DUAL_STACK", "INVALID_DROP", "ISTIO_OUTBOUND_OWNER_GROUPS",
        "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", "INBOUND_TUNNEL_PORT", "OTHER",
    ];
    VariableValue ["true", "0", "*", "1,2", "127.0.0.1/8", "15008", "", "x"];
}

/// A port's number: one of those that mean something, or any.
#[derive(Serialize)]
struct PortNumber(u32);

impl<'a> Arbitrary<'a> for PortNumber {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        const KNOWN: [u32; 10] = [80, 443, 3306, 9080, 0, 15001, 15006, 15021, 65535, 65536];
        Ok(Self(if u.ratio(1, 8)? {
            u.arbitrary()?
        } else {
            *u.choose(&KNOWN)?
        }))
    }
}

#[derive(Arbitrary)]
struct Sidecar {
    namespace: Namespace,
    spec: SidecarSpec,
}

#[derive(Arbitrary, Serialize)]
#[serde(rename_all = "camelCase")]
struct SidecarSpec {
    workload_selector: Option<Selector>,
    ingress: Vec<Ingress>,
    egress: Vec<Egress>,
    outbound_traffic_policy: Option<OutboundTrafficPolicy>,
}

#[derive(Arbitrary, Serialize)]
struct Selector {
    labels: BTreeMap<LabelKey, LabelValue>,
}

#[derive(Arbitrary, Serialize)]
#[serde(rename_all = "camelCase")]
struct Ingress {
    port: Port,
    bind: Option<Bind>,
    capture_mode: Option<CaptureMode>,
    default_endpoint: Option<DefaultEndpoint>,
}

#[derive(Arbitrary, Serialize)]
#[serde(rename_all = "camelCase")]
struct Egress {
    port: Option<Port>,
    bind: Option<Bind>,
    capture_mode: Option<CaptureMode>,
    hosts: Vec<EgressHost>,
}

#[derive(Arbitrary, Serialize)]
struct Port {
    number: PortNumber,
    protocol: Option<Protocol>,
    name: Option<PortName>,
}

#[derive(Arbitrary, Serialize)]
#[serde(rename_all = "camelCase")]
struct OutboundTrafficPolicy {
    mode: Option<PolicyMode>,
    egress_proxy: Option<EgressProxy>,
}

#[derive(Arbitrary, Serialize)]
struct EgressProxy {
    host: ServiceHost,
    port: NumberOf,
    subset: Option<PortName>,
}

#[derive(Arbitrary, Serialize)]
struct NumberOf {
    number: PortNumber,
}

#[derive(Arbitrary)]
struct ServiceEntry {
    namespace: Namespace,
    spec: ServiceEntrySpec,
}

#[derive(Arbitrary, Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceEntrySpec {
    hosts: Vec<ServiceHost>,
    addresses: Option<Vec<Address>>,
    ports: Vec<ServiceEntryPort>,
    location: Option<Location>,
    resolution: Option<Resolution>,
    endpoints: Option<Vec<Endpoint>>,
    workload_selector: Option<Selector>,
    export_to: Option<Vec<ExportTo>>,
}

#[derive(Arbitrary, Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceEntryPort {
    number: PortNumber,
    name: PortName,
    protocol: Option<Protocol>,
    target_port: Option<PortNumber>,
}

#[derive(Arbitrary, Serialize)]
struct Endpoint {
    address: EndpointAddress,
    ports: Option<BTreeMap<PortName, PortNumber>>,
    labels: Option<BTreeMap<LabelKey, LabelValue>>,
    weight: Option<u32>,
}

#[derive(Arbitrary)]
struct Service {
    namespace: Namespace,
    annotations: BTreeMap<Annotation, AnnotationValue>,
    spec: ServiceSpec,
}

#[derive(Arbitrary, Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceSpec {
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<ClusterIp>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<ClusterIp>>,
    r#type: Option<ServiceType>,
    external_name: Option<ServiceHost>,
    selector: Option<BTreeMap<LabelKey, LabelValue>>,
    ports: Vec<ServicePort>,
}

#[derive(Arbitrary, Serialize)]
#[serde(rename_all = "camelCase")]
struct ServicePort {
    name: Option<PortName>,
    port: PortNumber,
    target_port: Option<TargetPort>,
    protocol: Option<Transport>,
    app_protocol: Option<Protocol>,
}

#[derive(Arbitrary, Serialize)]
#[serde(untagged)]
enum TargetPort {
    Number(PortNumber),
    Name(PortName),
}

#[derive(Arbitrary)]
struct Workload {
    namespace: Namespace,
    annotations: BTreeMap<Annotation, AnnotationValue>,
    spec: Endpoint,
}

#[derive(Arbitrary, Serialize)]
#[serde(rename_all = "camelCase")]
struct Mesh {
    root_namespace: Option<Namespace>,
    outbound_traffic_policy: Option<Mode<PolicyMode>>,
    inbound_traffic_policy: Option<Mode<InboundMode>>,
    default_service_export_to: Option<Vec<ExportTo>>,
    proxy_listen_port: Option<PortNumber>,
    proxy_inbound_listen_port: Option<PortNumber>,
    default_config: Option<ProxyConfig>,
}

texts! {
    InboundMode ["PASSTHROUGH", "LOCALHOST"];
}

#[derive(Arbitrary, Serialize)]
struct Mode<T> {
    mode: T,
}

#[derive(Arbitrary, Serialize)]
#[serde(rename_all = "camelCase")]
struct ProxyConfig {
    interception_mode: Option<InterceptionMode>,
    status_port: Option<u16>,
    proxy_metadata: BTreeMap<Variable, VariableValue>,
}
