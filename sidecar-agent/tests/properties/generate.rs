//! Small worlds that collide: few names, few addresses, few ports, equal ages.
//!
//! A world is a list of documents as an operator would write them (as JSON, which is YAML), so
//! that only what validation accepts is ever tested.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    ops::Range,
};

use proptest::{
    prelude::*,
    sample::{Index, select, subsequence},
};
use serde_json::{Map, Value, json};

/// What comes several times comes more often, so that it collides.
const NAMESPACES: [&str; 5] = ["a", "a", "a", "b", "root"];
const PORTS: [u16; 8] = [80, 80, 80, 81, 443, 443, 3306, 15021];
const VIPS: [&str; 7] = [
    "10.96.0.1",
    "10.96.0.2",
    "10.96.0.3",
    "fd96::1",
    "fd96::2",
    "10.0.0.2",
    "::ffff:10.96.0.1",
];
const NETWORKS: [&str; 8] = [
    "10.96.0.0/30",
    "10.96.0.2/31",
    "10.96.0.0/16",
    "10.0.0.0/30",
    "fd96::/64",
    "fd96::/127",
    "0.0.0.0/0",
    "::/0",
];
const ENDPOINTS: [&str; 6] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "fd00::1",
    "fd00::2",
    "10.96.0.2",
];
const BINDS: [&str; 9] = [
    "127.0.0.1",
    "127.0.0.9",
    "::1",
    "0.0.0.0",
    "::",
    "10.96.0.1",
    "8.8.8.8",
    "10.0.0.1",
    "fd96::1",
];
const EXTERNAL_HOSTS: [&str; 10] = [
    "x.com",
    "x.com",
    "s.a.svc.cluster.local",
    "x.com",
    "y.x.com",
    "*.x.com",
    "*.y.x.com",
    "z.org",
    "s.a.svc.cluster.local",
    "t.b.svc.cluster.local",
];
const HOST_PATTERNS: [&str; 12] = [
    "*",
    "*",
    "*",
    "*",
    "*.x.com",
    "*.com",
    "x.com",
    "y.x.com",
    "*.y.x.com",
    "s.a.svc.cluster.local",
    "*.svc.cluster.local",
    "*.b.svc.cluster.local",
];
const HOST_NAMESPACES: [&str; 14] = [
    "*", "*", "*", "*", "*", ".", ".", "a", "b", "root", "~a", "~*", "~.", "~",
];
const RESOLVED: [&str; 3] = ["192.0.2.1", "192.0.2.2", "2001:db8::7"];
const INGRESS_ENDPOINTS: [&str; 9] = [
    "",
    ":8080",
    "127.0.0.1:8080",
    "127.0.0.1:80",
    "[::1]:8080",
    "0.0.0.0:8080",
    "[::]:8080",
    "unix:///run/i.sock",
    "unix://@i",
];
const TIMES: [&str; 4] = ["", "", "2024-01-01T00:00:00Z", "2024-01-02T00:00:00Z"];
const DESTINATIONS: [&str; 7] = [
    "x.com",
    "y.x.com",
    "s",
    "t",
    "s.a.svc.cluster.local",
    "t.b.svc.cluster.local",
    "*.x.com",
];
const VIRTUAL_HOSTS: [&str; 5] = ["x.com", "*.x.com", "v.x.com", "s", "w.net"];
const REMOTE_ADDRESSES: [&str; 6] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "fd00::2",
    "unix:///run/w.sock",
    "n.net",
];
const RESOLVED_NAMES: [&str; 6] = [
    "x.com",
    "y.x.com",
    "z.org",
    "s.a.svc.cluster.local",
    "t.b.svc.cluster.local",
    "n.net",
];
const ANNOTATED_RANGES: [&str; 9] = [
    "10.96.0.0/16",
    "10.96.0.2/31",
    "10.0.0.0/8",
    "192.0.2.0/24",
    "0.0.0.0/0",
    "::/0",
    "fd96::/64",
    "127.0.0.0/8",
    "::1/128",
];
const ANNOTATED_PORTS: [u16; 7] = [80, 81, 443, 3306, 15008, 15020, 53];

/// Users and groups; of the first several the settings tell.
const IDS: [u32; 7] = [1337, 3, 4, 0, 202, 1000, 1000];
const INTERFACES: [&str; 3] = ["eth0", "net1", "net2"];
/// Environment variables of the proxy, and values of theirs.
const ENVIRONMENT: [(&str, &[&str]); 6] = [
    ("ISTIO_META_DNS_CAPTURE", &["true", "T", "false", "0"]),
    ("ISTIO_OUTBOUND_OWNER_GROUPS", &["*", "", "202", "0,1000"]),
    ("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", &["", "202,"]),
    ("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", &["127.0.0.1/8"]),
    ("ISTIO_DUAL_STACK", &["true", "false"]),
    ("INBOUND_TUNNEL_PORT", &["443"]),
];
/// Annotations beside Istio's lists, and values of theirs.
const SETTINGS: [(&str, &[&str]); 15] = [
    (
        "capture.sidecar-agent.io/proxy-uid",
        &["3", "3,4", "0,3,", ""],
    ),
    ("capture.sidecar-agent.io/proxy-gid", &["3,4", "202", "x"]),
    (
        "capture.sidecar-agent.io/outbound-owner-groups",
        &["*", "", "202,0", "1000,x"],
    ),
    (
        "capture.sidecar-agent.io/outbound-owner-groups-exclude",
        &["202", "0,1000", ""],
    ),
    (
        "capture.sidecar-agent.io/outbound-ipv4-loopback-cidr",
        &["127.0.0.0/8", "10.0.0.1/32"],
    ),
    (
        "capture.sidecar-agent.io/dns-capture",
        &["true", "true", "false", "x"],
    ),
    (
        "capture.sidecar-agent.io/dns-capture-all",
        &["true", "false"],
    ),
    (
        "capture.sidecar-agent.io/dns-servers",
        &["10.96.0.2", "127.0.0.9,fd96::1", "10.96.0.1,10.0.0.2", ""],
    ),
    (
        "capture.sidecar-agent.io/dual-stack",
        &["true", "true", "false", "x"],
    ),
    ("capture.sidecar-agent.io/drop-invalid", &["true"]),
    (
        "capture.sidecar-agent.io/inbound-tunnel-port",
        &["80", "15008"],
    ),
    (
        "traffic.sidecar.istio.io/excludeInterfaces",
        &["net1", "net+", "lo", "eth0,", ""],
    ),
    (
        "istio.io/reroute-virtual-interfaces",
        &["net1", "net2,net1", ""],
    ),
    ("traffic.sidecar.istio.io/kubevirtInterfaces", &["net2"]),
    (
        "proxy.istio.io/config",
        &[r#"{"statusPort": 81}"#, r#"{"interceptionMode": "TPROXY"}"#],
    ),
];

/// Documents, and what host names resolve to.
#[derive(Clone)]
pub struct World {
    pub documents: Vec<Value>,
    pub dns: BTreeMap<String, BTreeSet<IpAddr>>,
}

/// As files that could be given to the agent.
impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for document in &self.documents {
            write!(f, "\n---\n{document}")?;
        }
        write!(f, "\n# {:?}\n", self.dns)
    }
}

/// A connection to be made up from what a world holds.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a choice by itself")]
pub struct Pick {
    pub inbound: bool,
    /// An outbound one: its socket is bound to `src`.
    pub bound: bool,
    pub uid: u32,
    pub gid: u32,
    pub udp: bool,
    pub interface: Option<&'static str>,
    pub ip: Index,
    pub port: Index,
    pub src: Index,
    pub mapped: bool,
}

pub fn picks() -> impl Strategy<Value = Vec<Pick>> {
    let pick = (
        any::<bool>(),
        (
            prop::bool::weighted(0.2),
            select(&IDS[..]),
            select(&IDS[..]),
            prop::bool::weighted(0.15),
        ),
        prop::option::of(select(&INTERFACES[..])),
        any::<Index>(),
        any::<Index>(),
        any::<Index>(),
        prop::bool::weighted(0.1),
    );
    let pick = pick.prop_map(
        |(inbound, (bound, uid, gid, udp), interface, ip, port, src, mapped)| Pick {
            inbound,
            bound,
            uid,
            gid,
            udp,
            interface,
            ip,
            port,
            src,
            mapped,
        },
    );
    prop::collection::vec(pick, 48)
}

/// Addresses and ports near which something may happen; those where something is several times.
pub fn interesting() -> (Vec<IpAddr>, Vec<u16>) {
    let mut ips = Vec::new();
    let often = VIPS.iter().chain(&ENDPOINTS).chain(&["127.0.0.1", "::1"]);
    let often = often.chain(VIPS.iter().chain(&ENDPOINTS));
    let singles = often.chain(&BINDS).chain(&RESOLVED);
    ips.extend(singles.map(|ip| ip.parse::<IpAddr>().unwrap().to_canonical()));
    // The edges of the networks, on both sides.
    ips.extend(
        [
            "10.96.0.0",
            "10.96.0.4",
            "10.95.255.255",
            "10.96.255.255",
            "10.97.0.0",
            "10.0.0.0",
            "10.0.0.4",
            "127.0.0.2",
            "127.255.255.255",
            "127.0.0.6",
            "::6",
            "192.0.2.3",
            "fd96::",
            "fd96::3",
            "fd96:0:0:1::",
            "fd95:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "2001:db8::8",
            "169.254.0.1",
        ]
        .map(|ip| ip.parse::<IpAddr>().unwrap()),
    );
    let mut ports = PORTS.repeat(4);
    ports.extend([79, 82, 444, 8080, 8081]);
    ports.extend([15001, 15006, 15008, 15020, 15090]);
    ports.extend([53; 12]);
    (ips, ports)
}

/// Worlds of all kinds, and such where everything is in one namespace and sees each other.
pub fn world() -> impl Strategy<Value = World> {
    let crowded = scattered(3..6).prop_map(|mut world| {
        crowd(&mut world);
        world
    });
    prop_oneof![scattered(0..4), crowded]
}

fn scattered(entries: Range<usize>) -> impl Strategy<Value = World> {
    let documents = (
        prop::collection::vec(sidecar(), 0..4),
        prop::collection::vec(service(), 0..4),
        prop::collection::vec(service_entry(), entries),
        prop::collection::vec(virtual_service(), 0..3),
        prop::collection::vec(local_workload(), 1..4),
        prop::collection::vec(remote_workload(), 0..3),
        prop::option::of(mesh()),
    );
    (documents, dns()).prop_map(|(documents, dns)| {
        let (sidecars, services, entries, virtual_services, local, remote, mesh) = documents;
        let mut all: Vec<Value> = mesh.into_iter().collect();
        for documents in [sidecars, services, entries, virtual_services, local, remote] {
            all.extend(documents);
        }
        World {
            documents: unique(all),
            dns,
        }
    })
}

/// Moves everything into one namespace and makes it visible there, with a catch-all behind each
/// Sidecar's other listeners, and egress proxies that are services.
fn crowd(world: &mut World) {
    for document in &mut world.documents {
        if let Some(metadata) = document.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("namespace".into(), json!("a"));
            let annotations = metadata
                .get_mut("annotations")
                .and_then(Value::as_object_mut);
            if let Some(annotations) = annotations {
                annotations
                    .retain(|name, _| !name.contains("include") && !name.contains("exportTo"));
            }
        }
        if let Some(spec) = document.get_mut("spec").and_then(Value::as_object_mut) {
            spec.remove("exportTo");
        }
    }
    world.documents = unique(std::mem::take(&mut world.documents));
    let cgroup = "/metadata/annotations/capture.sidecar-agent.io~1cgroup";
    let hosts: Vec<(Value, Value)> = world
        .documents
        .iter()
        .filter(|document| document["kind"] == "ServiceEntry")
        .map(|entry| {
            (
                entry["spec"]["hosts"][0].clone(),
                entry["spec"]["ports"][0]["number"].clone(),
            )
        })
        .filter(|(host, _)| host.as_str().is_some_and(|host| !host.starts_with('*')))
        .collect();
    for document in &mut world.documents {
        let id = id(document);
        if let Some(cgroup) = document.pointer_mut(cgroup) {
            *cgroup = json!(id);
        }
        if document["kind"] != "Sidecar" {
            continue;
        }
        let spec = &mut document["spec"];
        if let Some(spec) = spec.as_object_mut() {
            spec.remove("workloadSelector");
        }
        if let Some(listeners) = spec.get_mut("egress").and_then(Value::as_array_mut)
            && listeners
                .last()
                .is_some_and(|last| last.get("port").is_some())
        {
            listeners.push(json!({"hosts": ["*/*"]}));
        }
        if let Some(proxy) = spec.pointer_mut("/outboundTrafficPolicy/egressProxy")
            && let Some((host, port)) = hosts.first()
        {
            *proxy = json!({"host": host, "port": {"number": port}});
        }
    }
}

/// What tells a document from others.
pub fn id(document: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let Value::Object(meta) = &document["metadata"] else {
        return "mesh".into();
    };
    [&document["kind"], &meta["namespace"], &meta["name"]]
        .map(text)
        .join("-")
}

/// Of documents with one name only the first is left.
fn unique(documents: Vec<Value>) -> Vec<Value> {
    let mut seen = BTreeSet::new();
    documents
        .into_iter()
        .filter(|document| seen.insert(id(document)))
        .collect()
}

/// What a host name resolves to.
pub fn resolved() -> impl Strategy<Value = (&'static str, BTreeSet<IpAddr>)> {
    let addresses = subsequence(&RESOLVED[..], 0..=3)
        .prop_map(|ips| ips.iter().map(|ip| ip.parse().unwrap()).collect());
    (select(&RESOLVED_NAMES[..]), addresses)
}

fn dns() -> impl Strategy<Value = BTreeMap<String, BTreeSet<IpAddr>>> {
    prop::collection::vec(resolved(), 0..5).prop_map(|all| {
        all.into_iter()
            .map(|(name, ips)| (name.to_owned(), ips))
            .collect()
    })
}

// Resources.

fn resource(
    kind: &'static str,
    names: &'static [&'static str],
    spec: impl Strategy<Value = Value>,
) -> impl Strategy<Value = Value> {
    (
        select(names),
        select(&NAMESPACES[..]),
        select(&TIMES[..]),
        spec,
    )
        .prop_map(move |(name, namespace, time, mut spec)| {
            let version = match kind {
                "Service" => "v1",
                _ => "networking.istio.io/v1",
            };
            // What belongs to the metadata comes along with the spec.
            let mut metadata = match spec.as_object_mut().unwrap().remove("metadata") {
                Some(Value::Object(metadata)) => metadata,
                _ => Map::new(),
            };
            metadata.insert("name".into(), json!(name));
            metadata.insert("namespace".into(), json!(namespace));
            if !time.is_empty() {
                metadata.insert("creationTimestamp".into(), json!(time));
            }
            if let Some(cgroup) = metadata
                .get_mut("annotations")
                .and_then(|all| all.get_mut("capture.sidecar-agent.io/cgroup"))
            {
                *cgroup = json!(format!("{namespace}-{name}"));
            }
            json!({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec})
        })
}

/// An object without the members that are null, empty texts, lists or objects.
fn object<const N: usize>(members: [(&str, Value); N]) -> Value {
    let kept = members.into_iter().filter(|(_, value)| match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(members) => !members.is_empty(),
        _ => true,
    });
    Value::Object(kept.map(|(key, value)| (key.to_owned(), value)).collect())
}

fn labels() -> impl Strategy<Value = Value> {
    (select(&["", "p", "q"][..]), select(&["", "", "1"][..]))
        .prop_map(|(app, v)| object([("app", json!(app)), ("v", json!(v))]))
}

fn some_of(
    items: &'static [&'static str],
    least: usize,
    most: usize,
) -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(select(items), least..=most).prop_map(|picked| {
        let mut seen = BTreeSet::new();
        let first = picked.into_iter().filter(|item| seen.insert(*item));
        first.map(str::to_owned).collect()
    })
}

fn protocol() -> impl Strategy<Value = &'static str> {
    select(
        &[
            "", "HTTP", "HTTP", "TCP", "TCP", "GRPC", "TLS", "HTTPS", "MYSQL", "MONGO", "REDIS",
            "HTTP2",
        ][..],
    )
}

fn sidecar() -> impl Strategy<Value = Value> {
    let policy = prop_oneof![
        3 => Just(Value::Null),
        1 => Just(json!({})),
        1 => Just(json!({"mode": "REGISTRY_ONLY"})),
        1 => Just(json!({"mode": "ALLOW_ANY"})),
        1 => (select(&EXTERNAL_HOSTS[..]), select(&PORTS[..])).prop_map(|(host, port)| {
            let host = host.trim_start_matches("*.");
            json!({"mode": "ALLOW_ANY", "egressProxy": {"host": host, "port": {"number": port}}})
        }),
    ];
    let spec = (
        prop::option::weighted(0.4, labels()),
        prop::collection::vec(ingress(), 0..3),
        prop::collection::vec(egress(), 0..4),
        prop::option::weighted(0.7, egress()),
        policy,
    );
    let spec = spec.prop_map(|(selector, ingress, egress, catch_all, policy)| {
        let mut listeners = by_port(egress);
        if let Some(Value::Object(mut listener)) = catch_all {
            listener.remove("port");
            if listener
                .get("bind")
                .is_some_and(|bind| bind.as_str().unwrap().starts_with("unix"))
            {
                listener.remove("bind");
            }
            listeners.push(Value::Object(listener));
        }
        let ingress = by_port(ingress);
        if ingress.is_empty() && listeners.is_empty() && policy.is_null() {
            listeners.push(json!({"hosts": ["*/*"]}));
        }
        let mut spec = object([("ingress", json!(ingress)), ("egress", json!(listeners))]);
        if let Some(labels) = selector.filter(|labels| labels != &json!({})) {
            spec["workloadSelector"] = json!({"labels": labels});
        }
        if !policy.is_null() {
            spec["outboundTrafficPolicy"] = policy;
        }
        spec
    });
    resource("Sidecar", &["m", "n", "o"], spec)
}

/// The first of the listeners with each port (or unix socket).
fn by_port(listeners: Vec<Value>) -> Vec<Value> {
    let mut seen = BTreeSet::new();
    let key = |listener: &Value| match listener["port"]["number"].as_u64() {
        Some(0) => listener["bind"].to_string(),
        number => format!("{number:?}"),
    };
    listeners
        .into_iter()
        .filter(|listener| seen.insert(key(listener)))
        .collect()
}

fn capture_mode() -> impl Strategy<Value = &'static str> {
    select(&["", "", "DEFAULT", "IPTABLES", "NONE", "NONE"][..])
}

fn ingress() -> impl Strategy<Value = Value> {
    (
        select(&PORTS[..]),
        protocol(),
        prop::option::weighted(0.3, select(&BINDS[..])),
        capture_mode(),
        select(&INGRESS_ENDPOINTS[..]),
    )
        .prop_map(|(number, protocol, bind, mode, endpoint)| {
            object([
                (
                    "port",
                    object([("number", json!(number)), ("protocol", json!(protocol))]),
                ),
                ("bind", json!(bind.unwrap_or_default())),
                ("captureMode", json!(mode)),
                ("defaultEndpoint", json!(endpoint)),
            ])
        })
}

fn egress() -> impl Strategy<Value = Value> {
    let number = prop_oneof![6 => select(&PORTS[..]), 1 => Just(15001), 1 => Just(0)];
    let protocol = prop_oneof![12 => protocol(), 1 => Just("HTTP_PROXY"), 1 => Just("UDP")];
    (
        number,
        protocol,
        prop::option::weighted(0.3, select(&BINDS[..])),
        capture_mode(),
        hosts(),
    )
        .prop_map(|(number, protocol, bind, mode, hosts)| {
            let (bind, mode) = match number {
                0 => (
                    Some("unix:///run/e.sock"),
                    mode.trim_start_matches("IPTABLES"),
                ),
                _ => (bind, mode),
            };
            object([
                (
                    "port",
                    object([("number", json!(number)), ("protocol", json!(protocol))]),
                ),
                ("bind", json!(bind.unwrap_or_default())),
                ("captureMode", json!(mode)),
                ("hosts", json!(hosts)),
            ])
        })
}

pub fn hosts() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(
        (select(&HOST_NAMESPACES[..]), select(&HOST_PATTERNS[..])),
        1..4,
    )
    .prop_map(|hosts| {
        hosts
            .into_iter()
            .map(|(ns, name)| format!("{ns}/{name}"))
            .collect()
    })
}

fn export_to() -> impl Strategy<Value = Vec<String>> {
    prop_oneof![
        4 => Just(vec![]),
        1 => Just(vec!["*".to_owned()]),
        1 => Just(vec!["~".to_owned()]),
        1 => Just(vec![".".to_owned()]),
        1 => some_of(&["a", "b", "root"], 1, 2),
        1 => some_of(&["a", "b"], 1, 1).prop_map(|mut to| { to.push("c".into()); to }),
    ]
}

fn service() -> impl Strategy<Value = Value> {
    let port = (
        select(&PORTS[..]),
        select(&["http", "tcp", "tls-x", "grpc", "web", "mysql", "https"][..]),
        prop_oneof![
            3 => Just(Value::Null),
            1 => Just(json!(8080)),
            1 => Just(json!("named")),
        ],
        prop::option::weighted(0.1, select(&["http", "tcp", "kubernetes.io/h2c"][..])),
        prop::bool::weighted(0.05),
    );
    let port = port.prop_map(|(number, name, target, app, udp)| {
        object([
            ("port", json!(number)),
            ("name", json!(format!("{name}-{number}"))),
            ("targetPort", target),
            ("appProtocol", json!(app)),
            ("protocol", json!(if udp { "UDP" } else { "" })),
        ])
    });
    let ports = prop::collection::vec(port, 1..4).prop_map(|ports| {
        let mut seen = BTreeSet::new();
        ports
            .into_iter()
            .filter(|port| seen.insert(port["port"].as_u64()))
            .collect::<Vec<_>>()
    });
    let address = prop_oneof![
        6 => some_of(&VIPS, 1, 2).prop_map(|ips| json!({"clusterIP": ips[0], "clusterIPs": ips})),
        2 => Just(json!({"clusterIP": "None"})),
        1 => select(&["x.com", "n.net"][..])
            .prop_map(|name| json!({"type": "ExternalName", "externalName": name})),
    ];
    let spec = (labels(), ports, address, export_to()).prop_map(
        |(selector, ports, mut spec, export_to)| {
            if selector != json!({}) {
                spec["selector"] = selector;
            }
            spec["ports"] = json!(ports);
            if !export_to.is_empty() {
                let annotation = export_to.join(",");
                spec["metadata"] =
                    json!({"annotations": {"networking.istio.io/exportTo": annotation}});
            }
            spec
        },
    );
    resource("Service", &["s", "t"], spec)
}

fn entry_ports() -> impl Strategy<Value = Vec<Value>> {
    prop::collection::vec(
        (
            select(&PORTS[..]),
            protocol(),
            prop::option::weighted(0.2, Just(8081)),
        ),
        1..3,
    )
    .prop_map(|ports| {
        let mut seen = BTreeSet::new();
        let first = ports
            .into_iter()
            .filter(|(number, ..)| seen.insert(*number));
        first
            .map(|(number, protocol, target)| {
                object([
                    ("number", json!(number)),
                    ("name", json!(format!("p{number}"))),
                    ("protocol", json!(protocol)),
                    ("targetPort", json!(target)),
                ])
            })
            .collect::<Vec<_>>()
    })
}

fn service_entry() -> impl Strategy<Value = Value> {
    let addresses = prop_oneof![
        1 => Just(vec![]),
        1 => some_of(&VIPS, 1, 2),
        1 => some_of(&NETWORKS, 1, 2),
        1 => (some_of(&VIPS, 1, 1), some_of(&NETWORKS, 1, 1)).prop_map(|(mut a, b)| { a.extend(b); a }),
    ];
    let endpoint = (
        select(
            &[
                "10.0.0.1",
                "10.0.0.2",
                "10.0.0.3",
                "fd00::1",
                "::ffff:10.0.0.2",
                "unix:///run/s.sock",
                "n.net",
            ][..],
        ),
        prop::option::weighted(0.2, Just(9090)),
    );
    let spec = (
        some_of(&EXTERNAL_HOSTS, 1, 2),
        addresses,
        entry_ports(),
        select(&["NONE", "STATIC", "STATIC", "DNS", "DNS_ROUND_ROBIN"][..]),
        prop::collection::vec(endpoint, 0..4),
        prop::option::weighted(0.3, labels()),
        export_to(),
        labels(),
    )
        .prop_map(
            |(mut hosts, mut addresses, ports, resolution, mut endpoints, selector, to, labels)| {
                let by_name = |port: &Value| {
                    matches!(
                        port["protocol"].as_str(),
                        Some("HTTP" | "HTTP2" | "GRPC" | "TLS" | "HTTPS")
                    )
                };
                if resolution != "NONE" && !ports.iter().all(by_name) {
                    hosts.truncate(1);
                }
                let selector = selector.filter(|_| resolution == "STATIC" && labels != json!({}));
                if resolution == "NONE" || selector.is_some() {
                    endpoints.clear();
                }
                if resolution == "STATIC" {
                    let unix_fits = ports.len() == 1;
                    endpoints.retain(|(address, _)| {
                        *address != "n.net" && (unix_fits || !address.starts_with("unix"))
                    });
                }
                if resolution.starts_with("DNS") {
                    addresses.retain(|address| !address.contains('/'));
                    endpoints.retain(|(address, _)| !address.starts_with("unix"));
                    if resolution == "DNS_ROUND_ROBIN" {
                        endpoints.truncate(1);
                    }
                    if endpoints.is_empty() {
                        hosts.retain(|host| !host.starts_with('*'));
                        if hosts.is_empty() {
                            hosts.push("x.com".into());
                        }
                    }
                }
                let first = ports[0]["name"].as_str().unwrap_or_default().to_owned();
                let endpoints: Vec<Value> = endpoints
                    .into_iter()
                    .map(|(address, port)| match port {
                        Some(port) if !address.starts_with("unix") => {
                            json!({"address": address, "ports": {first.clone(): port}})
                        }
                        _ => json!({"address": address}),
                    })
                    .collect();
                let selector = selector.map(|labels| json!({"labels": labels}));
                let selector = selector.filter(|selector| selector["labels"] != json!({}));
                object([
                    ("metadata", object([("labels", labels)])),
                    ("hosts", json!(hosts)),
                    ("addresses", json!(addresses)),
                    ("ports", json!(ports)),
                    ("resolution", json!(resolution)),
                    ("location", json!("MESH_INTERNAL")),
                    ("endpoints", json!(endpoints)),
                    ("workloadSelector", json!(selector)),
                    ("exportTo", json!(to)),
                ])
            },
        );
    resource("ServiceEntry", &["e", "f", "s"], spec)
}

fn virtual_service() -> impl Strategy<Value = Value> {
    let route = (
        select(&DESTINATIONS[..]),
        prop::option::of(select(&PORTS[..])),
    )
        .prop_map(|(host, port)| {
            let port = port.map(|number| json!({"number": number}));
            json!({"destination": object([("host", json!(host)), ("port", json!(port))])})
        });
    let spec = (
        some_of(&VIRTUAL_HOSTS, 1, 2),
        prop::collection::vec(route, 1..3),
        select(&["", "", "mesh", "gateway"][..]),
        export_to(),
    )
        .prop_map(|(hosts, route, gateway, to)| {
            let gateways: Vec<&str> = Some(gateway)
                .filter(|g| !g.is_empty())
                .into_iter()
                .collect();
            object([
                ("hosts", json!(hosts)),
                ("gateways", json!(gateways)),
                ("exportTo", json!(to)),
                ("http", json!([{"route": route}])),
            ])
        });
    resource("VirtualService", &["u", "v"], spec)
}

fn list_annotation(items: Vec<String>, star: bool) -> impl Strategy<Value = String> {
    let least = 0;
    let some = subsequence(items, least..3).prop_map(|items| items.join(","));
    if star {
        prop_oneof![some, Just("*".to_owned())].boxed()
    } else {
        some.boxed()
    }
}

fn ports_annotation(star: bool) -> impl Strategy<Value = String> {
    list_annotation(ANNOTATED_PORTS.iter().map(u16::to_string).collect(), star)
}

fn ranges_annotation(included: bool) -> impl Strategy<Value = String> {
    // Excluding `::1` says what holds anyway; which of the two reasons is given does not matter.
    let ranges = ANNOTATED_RANGES
        .iter()
        .filter(|range| included || **range != "::1/128");
    list_annotation(ranges.map(ToString::to_string).collect(), included)
}

fn local_workload() -> impl Strategy<Value = Value> {
    fn rare<S: Strategy>(text: S) -> impl Strategy<Value = Option<S::Value>> {
        prop::option::weighted(0.2, text)
    }
    let annotations = (
        (
            rare(ports_annotation(true)),
            rare(ports_annotation(false)),
            rare(ranges_annotation(true)),
            rare(ranges_annotation(false)),
            rare(ports_annotation(false)),
            rare(ports_annotation(false)),
        ),
        rare(select(&["REDIRECT", "TPROXY", "NONE", ""][..])),
        rare(select(&["0", "15020", "81"][..])),
        prop::option::weighted(0.3, select(&["none", "external", "external"][..])),
        prop::option::weighted(0.8, Just("/run/netns/w")),
        rare(some_of(
            &["10.0.0.2", "fd00::1", "169.254.0.1", "::ffff:10.0.0.3"],
            0,
            3,
        )),
    );
    let annotations = annotations.prop_map(|(lists, mode, status, proxy, netns, addresses)| {
        let (include_in, exclude_in, include_ranges, exclude_ranges, include_out, exclude_out) =
            lists;
        let mut all = Map::new();
        all.insert("capture.sidecar-agent.io/cgroup".into(), json!(""));
        for (name, value) in [
            ("traffic.sidecar.istio.io/includeInboundPorts", include_in),
            ("traffic.sidecar.istio.io/excludeInboundPorts", exclude_in),
            (
                "traffic.sidecar.istio.io/includeOutboundIPRanges",
                include_ranges,
            ),
            (
                "traffic.sidecar.istio.io/excludeOutboundIPRanges",
                exclude_ranges,
            ),
            ("traffic.sidecar.istio.io/includeOutboundPorts", include_out),
            ("traffic.sidecar.istio.io/excludeOutboundPorts", exclude_out),
            ("sidecar.istio.io/interceptionMode", mode.map(str::to_owned)),
            ("status.sidecar.istio.io/port", status.map(str::to_owned)),
            ("capture.sidecar-agent.io/proxy", proxy.map(str::to_owned)),
            ("capture.sidecar-agent.io/netns", netns.map(str::to_owned)),
            (
                "capture.sidecar-agent.io/addresses",
                addresses.map(|ips| ips.join(",")),
            ),
        ] {
            if let Some(value) = value {
                all.insert(name.into(), json!(value));
            }
        }
        all
    });
    let annotations =
        (annotations, settings(), environment()).prop_map(|(mut all, settings, environment)| {
            all.extend(settings);
            // The one with the most to say.
            if let Some(environment) = environment {
                let config = json!({"proxyMetadata": environment}).to_string();
                all.entry("proxy.istio.io/config").or_insert(json!(config));
            }
            all
        });
    let spec = (
        annotations,
        select(
            &[
                "10.0.0.1",
                "10.0.0.2",
                "fd00::1",
                "::ffff:10.0.0.3",
                "169.254.0.1",
            ][..],
        ),
        labels(),
        labels(),
    )
        .prop_map(|(annotations, address, labels, meta_labels)| {
            json!({
                "metadata": object([("annotations", json!(annotations)), ("labels", meta_labels)]),
                "address": address,
                "labels": labels,
                "ports": {"named": 7777},
            })
        });
    resource("WorkloadEntry", &["w1", "w2", "w3"], spec)
}

/// A few settings, often none.
fn settings() -> impl Strategy<Value = Map<String, Value>> {
    let settings: Vec<_> = SETTINGS
        .iter()
        .map(|(name, values)| {
            let value = prop::option::weighted(0.15, select(*values));
            value.prop_map(move |value| Some(((*name).to_owned(), json!(value?))))
        })
        .collect();
    prop_oneof![
        Just(Map::new()),
        settings.prop_map(|all| all.into_iter().flatten().collect())
    ]
}

/// Environment variables of a proxy, mostly none.
fn environment() -> impl Strategy<Value = Option<Map<String, Value>>> {
    let variables: Vec<_> = ENVIRONMENT
        .iter()
        .map(|(name, values)| {
            let value = prop::option::weighted(0.4, select(*values));
            value.prop_map(move |value| Some(((*name).to_owned(), json!(value?))))
        })
        .collect();
    let variables = variables.prop_map(|all| all.into_iter().flatten().collect());
    prop::option::weighted(0.2, variables)
}

fn remote_workload() -> impl Strategy<Value = Value> {
    let ports = select(&[("", 0), ("named", 7777), ("p80", 7780)][..]);
    let spec = (select(&REMOTE_ADDRESSES[..]), labels(), ports).prop_map(
        |(address, labels, (name, port))| {
            let mut spec = json!({"address": address, "labels": labels});
            if !name.is_empty() && !address.starts_with("unix") {
                spec["ports"] = json!({name: port});
            }
            spec
        },
    );
    resource("WorkloadEntry", &["r1", "r2", "r3"], spec)
}

fn mesh() -> impl Strategy<Value = Value> {
    (
        select(&["", "root", "root", "a"][..]),
        select(&["", "REGISTRY_ONLY", "ALLOW_ANY"][..]),
        select(&["", "", "*", ".", "~"][..]),
        select(&["", "", "*", ".", "~"][..]),
        select(&["", "", "", "NONE", "TPROXY"][..]),
        select(&["", "", "LOCALHOST"][..]),
        (
            prop::option::weighted(0.1, select(&[0, 81][..])),
            environment(),
        ),
    )
        .prop_map(
            |(root, policy, export_to, virtual_to, mode, inbound, (status, metadata))| {
                let some = |to: &'static str| Some(to).filter(|to| !to.is_empty());
                let export_to: Vec<&str> = some(export_to).into_iter().collect();
                let virtual_to: Vec<&str> = some(virtual_to).into_iter().collect();
                let mut mesh = object([
                    ("rootNamespace", json!(root)),
                    ("outboundTrafficPolicy", object([("mode", json!(policy))])),
                    ("defaultServiceExportTo", json!(export_to)),
                    ("defaultVirtualServiceExportTo", json!(virtual_to)),
                    (
                        "defaultConfig",
                        object([
                            ("interceptionMode", json!(mode)),
                            ("statusPort", json!(status)),
                            ("proxyMetadata", json!(metadata)),
                        ]),
                    ),
                    ("inboundTrafficPolicy", object([("mode", json!(inbound))])),
                ]);
                // A document without any field would be none.
                mesh["accessLogFile"] = json!("/dev/stdout");
                mesh
            },
        )
}
