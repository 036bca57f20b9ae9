//! Whole documents: which are accepted, as what, and how the others are refused.

use std::{collections::BTreeMap, sync::Arc};

use sidecar_agent::model::{
    Object,
    decode::{self, Decoded, Resource},
    diagnostic::Severity,
    endpoints::Endpoints,
    mesh::{InterceptionMode, MeshConfig, ProxyConfig},
    service::{Service, ServicePort, TargetPort},
    service_entry::{Resolution, ServiceEntry, ServiceEntryPort},
    sidecar::{CaptureMode, EgressListener, IngressListener, OutboundTrafficPolicy, Port, Sidecar},
    tree::Source,
    workload::WorkloadEntry,
};

/// The examples of the Sidecar's first description, as written there.
const EXAMPLES: &str = r#"apiVersion: networking.istio.io/v1alpha3
kind: Sidecar
metadata:
  name: default
  namespace: prod-us1
spec:
  egress:
  - hosts:
    - "prod-us1/*"
    - "prod-apis/*"
    - "istio-system/*"
---
apiVersion: networking.istio.io/v1alpha3
kind: Sidecar
metadata:
  name: default
  namespace: prod-us1
spec:
  ingress:
  - port:
      number: 9080
      protocol: HTTP
      name: somename
    defaultEndpoint: unix:///var/run/someuds.sock
  egress:
  - port:
      number: 9080
      protocol: HTTP
      name: egresshttp
    hosts:
    - "prod-us1/*"
  - hosts:
    - "istio-system/*"
---
apiVersion: networking.istio.io/v1alpha3
kind: Sidecar
metadata:
  name: no-ip-tables
  namespace: prod-us1
spec:
  workloadSelector:
    labels:
      app: productpage
  ingress:
  - port:
      number: 9080 # binds to 0.0.0.0:9080
      protocol: HTTP
      name: somename
    defaultEndpoint: 127.0.0.1:8080
    captureMode: NONE # not needed if metadata is set for entire proxy
  egress:
  - port:
      number: 3306
      protocol: MYSQL
      name: egressmysql
    captureMode: NONE # not needed if metadata is set for entire proxy
    bind: 127.0.0.1
    hosts:
    - "*/mysql.foo.com"
---
apiVersion: networking.istio.io/v1alpha3
kind: ServiceEntry
metadata:
  name: external-svc-mysql
  namespace: ns1
spec:
  hosts:
  - mysql.foo.com
  ports:
  - number: 3306
    name: mysql
    protocol: MYSQL
  location: MESH_EXTERNAL
  resolution: DNS
---
apiVersion: networking.istio.io/v1alpha3
kind: Sidecar
metadata:
  name: partial-ip-tables
  namespace: prod-us1
spec:
  workloadSelector:
    labels:
      app: productpage
  ingress:
  - bind: 172.16.1.32
    port:
      number: 80 # binds to 172.16.1.32:80
      protocol: HTTP
      name: somename
    defaultEndpoint: 127.0.0.1:8080
    captureMode: NONE
  egress:
    # use the system detected defaults
    # sets up configuration to handle outbound traffic to services
    # in 192.168.0.0/16 subnet, based on information provided by the
    # service registry
  - captureMode: IPTABLES
    hosts:
    - "*/*"
"#;

fn decoded(text: &str) -> Decoded {
    decode::text(&Source::new("test.yaml", text))
}

/// The resources of a text in which nothing is wrong.
fn clean(text: &str) -> Vec<Resource> {
    let Decoded {
        resources,
        broken,
        unnamed,
        diagnostics,
    } = decoded(text);
    assert_eq!(diagnostics, []);
    assert!(broken.is_empty() && !unnamed);
    resources
}

fn sidecars(resources: Vec<Resource>) -> Vec<Arc<Object<Sidecar>>> {
    let sidecar = |resource| match resource {
        Resource::Sidecar(object) => Some(object),
        _ => None,
    };
    resources.into_iter().filter_map(sidecar).collect()
}

/// Code, field, line and column of everything that was found.
fn found(text: &str) -> Vec<(&'static str, String, u32, u32)> {
    let place = |d: sidecar_agent::model::diagnostic::Diagnostic| {
        let at = d.location.expect("every finding in a text has a place");
        (d.code, d.field, at.line, at.column)
    };
    decoded(text).diagnostics.into_iter().map(place).collect()
}

fn port(number: u32, protocol: &str, name: &str) -> Port {
    Port {
        number,
        protocol: protocol.into(),
        name: name.into(),
    }
}

fn strings<const N: usize>(list: [&str; N]) -> Vec<String> {
    list.map(Into::into).into()
}

#[test]
fn the_examples_are_read_as_written() {
    let resources = clean(EXAMPLES);
    assert_eq!(resources.len(), 5);
    let Resource::ServiceEntry(entry) = &resources[3] else {
        panic!("{:?}", resources[3])
    };
    assert_eq!(
        entry.spec,
        ServiceEntry {
            hosts: strings(["mysql.foo.com"]),
            ports: vec![ServiceEntryPort {
                number: 3306,
                protocol: "MYSQL".into(),
                name: "mysql".into(),
                target: None,
            }],
            resolution: Resolution::Dns,
            ..ServiceEntry::default()
        }
    );
    let sidecars = sidecars(resources);
    let names: Vec<_> = sidecars
        .iter()
        .map(|s| (&*s.meta.name, s.origin.line))
        .collect();
    assert_eq!(
        names,
        [
            ("default", 1),
            ("default", 13),
            ("no-ip-tables", 35),
            ("partial-ip-tables", 76)
        ]
    );
    assert_eq!(
        sidecars[1].spec,
        Sidecar {
            ingress: vec![IngressListener {
                port: port(9080, "HTTP", "somename"),
                default_endpoint: "unix:///var/run/someuds.sock".into(),
                ..IngressListener::default()
            }],
            egress: vec![
                EgressListener {
                    port: Some(port(9080, "HTTP", "egresshttp")),
                    hosts: strings(["prod-us1/*"]),
                    ..EgressListener::default()
                },
                EgressListener {
                    hosts: strings(["istio-system/*"]),
                    ..EgressListener::default()
                },
            ],
            ..Sidecar::default()
        }
    );
    assert_eq!(
        sidecars[2].spec,
        Sidecar {
            selector: Some(BTreeMap::from([("app".into(), "productpage".into())])),
            ingress: vec![IngressListener {
                port: port(9080, "HTTP", "somename"),
                default_endpoint: "127.0.0.1:8080".into(),
                capture_mode: CaptureMode::None,
                ..IngressListener::default()
            }],
            egress: vec![EgressListener {
                port: Some(port(3306, "MYSQL", "egressmysql")),
                capture_mode: CaptureMode::None,
                bind: "127.0.0.1".into(),
                hosts: strings(["*/mysql.foo.com"]),
            }],
            ..Sidecar::default()
        }
    );
    assert_eq!(sidecars[3].spec.ingress[0].bind, "172.16.1.32");
    assert_eq!(
        sidecars[3].spec.egress[0].capture_mode,
        CaptureMode::Iptables
    );
}

#[test]
fn an_absent_mode_is_registry_only_and_an_absent_policy_is_not() {
    let policy = |policy: &str| {
        let text = format!(
            "apiVersion: networking.istio.io/v1beta1\nkind: Sidecar\nmetadata: {{name: a}}\nspec: {{{policy}egress: [{{hosts: [\"*/*\"]}}]}}\n"
        );
        let sidecar = sidecars(clean(&text)).remove(0);
        assert_eq!(sidecar.meta.namespace, "default");
        sidecar.spec.outbound_traffic_policy
    };
    assert_eq!(policy(""), None);
    assert_eq!(policy("outboundTrafficPolicy: null, "), None);
    assert_eq!(
        policy("outboundTrafficPolicy: {}, "),
        Some(OutboundTrafficPolicy::RegistryOnly)
    );
    assert_eq!(
        policy("outboundTrafficPolicy: {mode: ALLOW_ANY}, "),
        Some(OutboundTrafficPolicy::AllowAny)
    );
}

#[test]
fn what_only_a_proxy_can_do_is_noted_and_said() {
    let text = "apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: a, namespace: b}
spec:
  ingress:
  - port: {number: 443, protocol: HTTPS}
    tls: {mode: SIMPLE, serverCertificate: /c, privateKey: /k}
    connectionPool: {tcp: {maxConnections: 1}}
  inboundConnectionPool: {http: {maxRetries: 1}}
  outboundTrafficPolicy:
    mode: ALLOW_ANY
    egressProxy: {host: a.b, port: {number: 80}}
";
    let decoded = decoded(text);
    assert!(
        decoded
            .diagnostics
            .iter()
            .all(|d| d.severity == Severity::Warning)
    );
    let fields = [
        "spec.ingress[0].tls",
        "spec.ingress[0].connectionPool",
        "spec.inboundConnectionPool",
    ];
    assert_eq!(sidecars(decoded.resources)[0].spec.left_to_proxy, fields);
    let expected = [(7, 5), (8, 5), (9, 3)];
    let expected: Vec<_> = fields
        .into_iter()
        .zip(expected)
        .map(|(field, (line, column))| ("SCA0030", field.to_owned(), line, column))
        .collect();
    assert_eq!(found(text), expected);
}

#[test]
fn everything_wrong_in_a_sidecar_is_found_once_with_its_place() {
    let text = "apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: Bad_Name, creationTimestamp: yesterday}
spec:
  workloadSelecter: {}
  ingress:
  - port: {number: \"80\", protocol: QUIC}
    captureMode: none
    defaultEndpoint: 10.0.0.1:80
  - {}
  egress:
  - hosts: a/b.c
  - port:
      number: 0
    bind: /run/x
    hosts: [prod, \"~x/*.y.z\", 7]
more: 1
";
    assert_eq!(
        found(text),
        [
            ("SCA0022", "more".into(), 17, 1),
            ("SCA0027", "metadata.name".into(), 3, 18),
            ("SCA0028", "metadata.creationTimestamp".into(), 3, 47),
            ("SCA0022", "spec.workloadSelecter".into(), 5, 3),
            ("SCA0020", "spec.ingress[0].port.number".into(), 7, 20),
            ("SCA0024", "spec.ingress[0].captureMode".into(), 8, 18),
            ("SCA0021", "spec.ingress[1].port".into(), 10, 5),
            ("SCA0020", "spec.egress[0].hosts".into(), 12, 12),
            ("SCA0020", "spec.egress[1].hosts[2]".into(), 16, 31),
            ("SCA0105", "spec.ingress[0].port.protocol".into(), 7, 36),
            ("SCA0111", "spec.ingress[0].defaultEndpoint".into(), 9, 22),
            ("SCA0112", "spec.egress[0].port".into(), 12, 5),
            ("SCA0107", "spec.egress[1].bind".into(), 15, 11),
            ("SCA0114", "spec.egress[1].hosts[0]".into(), 16, 13),
        ]
    );
    let decoded = decoded(text);
    assert_eq!((decoded.resources.len(), decoded.broken.len()), (0, 1));
    let selector = decoded
        .diagnostics
        .iter()
        .find(|d| d.line() == 5)
        .expect("a finding there");
    assert_eq!(selector.remedy, "did you mean `workloadSelector`?");
}

trait Line {
    fn line(&self) -> u32;
}

impl Line for sidecar_agent::model::diagnostic::Diagnostic {
    fn line(&self) -> u32 {
        self.location.as_ref().map_or(0, |at| at.line)
    }
}

#[test]
fn kinds_and_versions() {
    let codes = |text: &str| -> Vec<_> { found(text).into_iter().map(|f| f.0).collect() };
    for (api_version, kind, expected) in [
        ("networking.istio.io/v1alpha3", "DestinationRule", "SCA0007"),
        ("apps/v1", "Deployment", "SCA0007"),
        ("v1", "Pod", "SCA0007"),
        ("serving.knative.dev/v1", "Service", "SCA0007"),
        ("networking.istio.io/v1", "SideCar", "SCA0005"),
        ("networking.istio.io/v1", "Nonsense", "SCA0005"),
        ("example.com/v1", "Whatever", "SCA0005"),
        ("networking.istio.io/v1alpha4", "Sidecar", "SCA0006"),
        ("v1", "Sidecar", "SCA0006"),
        ("v2", "Service", "SCA0006"),
    ] {
        let text = format!("apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: a}}\n");
        assert_eq!(codes(&text), [expected], "{api_version} {kind}");
    }
    for text in ["a: 1\n", "- 1\n", "just text\n", "metadata: {name: a}\n"] {
        assert_eq!(codes(text), ["SCA0004"], "{text}");
    }
    assert_eq!(codes("kind: Sidecar\n"), ["SCA0006"]);
    assert_eq!(codes("apiVersion: v1\n"), ["SCA0005"]);
}

#[test]
fn lists_are_their_items() {
    let item = "metadata: {name: NAME}, spec: {egress: [{hosts: [\"*/*\"]}]}";
    let full = |name: &str| {
        format!(
            "{{apiVersion: networking.istio.io/v1, kind: Sidecar, {}}}",
            item.replace("NAME", name)
        )
    };
    let bare = |name: &str| format!("{{{}}}", item.replace("NAME", name));
    let names = |text: String| -> Vec<_> {
        sidecars(clean(&text))
            .into_iter()
            .map(|object| object.meta.name.clone())
            .collect()
    };
    assert_eq!(
        names(format!(
            "apiVersion: v1\nkind: List\nitems: [{}, {}]\n",
            full("a"),
            full("b")
        )),
        ["a", "b"]
    );
    assert_eq!(
        names(format!(
            "apiVersion: networking.istio.io/v1\nkind: SidecarList\nitems: [{}, {}]\n",
            bare("a"),
            full("b")
        )),
        ["a", "b"]
    );
    let broken = format!(
        "apiVersion: v1\nkind: List\nitems:\n- {}\n- {}\n",
        full("a").replace("*/*", "x"),
        full("b")
    );
    assert_eq!(found(&broken).len(), 1);
    assert_eq!(found(&broken)[0].2, 4);
    assert_eq!(
        sidecars(decoded(&broken).resources).len(),
        1,
        "the others are used"
    );
}

#[test]
fn endpoints_that_are_ready() {
    let resources = clean(
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: db-x7
  namespace: prod
  labels: {kubernetes.io/service-name: db}
addressType: IPv4
endpoints:
- {addresses: [10.0.0.1], conditions: {ready: true}, nodeName: a}
- {addresses: [10.0.0.2], conditions: {ready: false, serving: true}}
- {addresses: [10.0.0.3]}
ports:
- {name: tcp, port: 3306, protocol: TCP}
- {name: all}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: names, labels: {kubernetes.io/service-name: db}}
addressType: FQDN
endpoints: [{addresses: [db.example.com]}]
ports: [{port: 1}]
---
apiVersion: v1
kind: Endpoints
metadata: {name: db, namespace: prod}
subsets:
- addresses: [{ip: 10.0.0.4}, {ip: \"::ffff:10.0.0.5\"}]
  notReadyAddresses: [{ip: 10.0.0.6}]
  ports: [{port: 80}]
- addresses: [{ip: \"fd00::1\"}]
  ports: [{port: 81}]
",
    );
    let endpoints: Vec<Endpoints> = resources
        .into_iter()
        .map(|resource| match resource {
            Resource::EndpointSlice(object) | Resource::Endpoints(object) => object.spec.clone(),
            other => panic!("{other:?}"),
        })
        .collect();
    let of = |endpoints: &Endpoints, port: &str| -> Vec<String> {
        let of_port = endpoints.of_port(port);
        of_port.map(|(ip, port)| format!("{ip} {port}")).collect()
    };
    assert_eq!(endpoints[0].service, "db");
    assert_eq!(of(&endpoints[0], "tcp"), ["10.0.0.1 3306", "10.0.0.3 3306"]);
    assert_eq!(of(&endpoints[0], "all"), [""; 0]);
    assert_eq!(endpoints[1].ready, []);
    assert_eq!(endpoints[2].service, "db");
    assert_eq!(
        of(&endpoints[2], ""),
        ["10.0.0.4 80", "10.0.0.5 80", "fd00::1 81"]
    );

    let found = decoded(
        "apiVersion: v1
kind: Endpoints
metadata: {name: db}
subsets: [{addresses: [{ip: db.example.com}], ports: [{port: 70000}]}]
",
    );
    let fields: Vec<&str> = found.diagnostics.iter().map(|of| &*of.field).collect();
    assert_eq!(
        fields,
        ["subsets[0].ports[0].port", "subsets[0].addresses[0].ip"]
    );
    assert_eq!(found.broken.len(), 1);
}

#[test]
fn services() {
    let resources = clean(
        "apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: prod
  uid: x
  managedFields: []
  annotations: {networking.istio.io/exportTo: \"., other\"}
spec:
  clusterIP: 10.0.0.1
  clusterIPs: [10.0.0.1, \"fd00::1\"]
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: web, appProtocol: http, nodePort: 30000}
  - {name: dns, port: 53, protocol: UDP, targetPort: 5353}
  - {port: 443}
status: {loadBalancer: {}}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere}
spec: {type: ExternalName, externalName: db.example.com}
",
    );
    let services: Vec<Service> = resources
        .into_iter()
        .map(|resource| match resource {
            Resource::Service(object) => object.spec.clone(),
            other => panic!("{other:?}"),
        })
        .collect();
    let number = TargetPort::Number;
    let tcp = || ServicePort {
        transport: "TCP".into(),
        ..ServicePort::default()
    };
    assert_eq!(
        services[0],
        Service {
            cluster_ips: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            selector: BTreeMap::from([("app".into(), "web".into())]),
            ports: vec![
                ServicePort {
                    name: "http".into(),
                    port: 80,
                    target: TargetPort::Name("web".into()),
                    app_protocol: Some("http".into()),
                    ..tcp()
                },
                ServicePort {
                    name: "dns".into(),
                    port: 53,
                    target: number(5353),
                    transport: "UDP".into(),
                    ..tcp()
                },
                ServicePort {
                    port: 443,
                    target: number(443),
                    ..tcp()
                },
            ],
            export_to: Some(strings([".", "other"])),
            ..Service::default()
        }
    );
    assert!(services[1].headless && services[1].cluster_ips.is_empty());
    assert_eq!(services[2].external_name.as_deref(), Some("db.example.com"));

    let wrong = found(
        "apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIP: ten
  ports:
  - {port: 0, targetPort: \"80\"}
  - {port: 1, targetPort: 65536}
  - {port: 1}
  - {port: 1, protocol: UDP}
",
    );
    let fields: Vec<_> = wrong.iter().map(|f| f.1.as_str()).collect();
    assert_eq!(
        fields,
        [
            "spec.clusterIP",
            "spec.ports[0].port",
            "spec.ports[0].targetPort",
            "spec.ports[1].targetPort",
            "spec.ports[2].port"
        ]
    );
}

#[test]
fn workload_entries() {
    let text = "apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata:
  name: vm
  labels: {app: db, tier: back}
  annotations:
    capture.sidecar-agent.io/cgroup: /system.slice/db.service
    capture.sidecar-agent.io/netns: /run/netns/db
    capture.sidecar-agent.io/proxy: external
    capture.sidecar-agent.io/proxy-cgroup: envoy.slice
    other.example.com/x: z
spec:
  address: 10.0.0.7
  ports: {mysql: 3306}
  labels: {app: overridden, version: v1}
  weight: 3
  network: net
  locality: a/b
  serviceAccount: sa
";
    let resources = clean(text);
    let [Resource::WorkloadEntry(entry)] = &resources[..] else {
        panic!("{resources:?}")
    };
    let labels = [("app", "db"), ("tier", "back"), ("version", "v1")];
    assert_eq!(
        entry.spec,
        WorkloadEntry {
            address: "10.0.0.7".into(),
            ports: BTreeMap::from([("mysql".into(), 3306)]),
            labels: labels.map(|(k, v)| (k.into(), v.into())).into(),
            weight: 3,
            is_pod: false,
        }
    );

    for (from, to, code, field) in [
        (
            "/cgroup: /system.slice/db.service",
            "/cgroup: /",
            "SCA0221",
            "cgroup",
        ),
        (
            "/cgroup: /system.slice/db.service",
            "/cgroup: \"\"",
            "SCA0221",
            "cgroup",
        ),
        (
            "/cgroup: /system.slice/db.service",
            "/cgroup: a/../b",
            "SCA0221",
            "cgroup",
        ),
        ("proxy: external", "proxy: maybe", "SCA0221", "proxy"),
        ("/netns: /run/netns/db", "/netns: db", "SCA0221", "netns"),
        ("/netns: /run/netns/db", "/net-ns: db", "SCA0220", "net-ns"),
    ] {
        let changed = text.replace(from, to);
        assert_ne!(changed, text, "{from}");
        let found = found(&changed);
        let field = format!("metadata.annotations[capture.sidecar-agent.io/{field}]");
        assert_eq!(found.len(), 1, "{to}: {found:?}");
        assert_eq!((found[0].0, &found[0].1), (code, &field), "{to}");
    }
    for (from, to, code) in [
        ("address: 10.0.0.7", "address: -bad-", "SCA0203"),
        ("address: 10.0.0.7", "address: unix:///x", "SCA0203"),
        ("  network: net\n", "", ""),
        ("mysql: 3306", "mysql: 0", "SCA0103"),
        ("mysql: 3306", "my_sql: 3306", "SCA0104"),
        ("version: v1", "version: -v1", "SCA0207"),
    ] {
        let changed = text.replace(from, to);
        assert_ne!(changed, text, "{from}");
        let codes: Vec<_> = found(&changed).into_iter().map(|f| f.0).collect();
        let expected: Vec<_> = (!code.is_empty()).then_some(code).into_iter().collect();
        assert_eq!(codes, expected, "{to}");
    }
}

const SERVICE_ENTRY: &str = "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db, namespace: ns}
spec:
  hosts: [db.example.com]
  addresses: [10.1.0.0/16, 10.2.0.1]
  ports:
  - {number: 3306, name: mysql, protocol: MySQL, targetPort: 3307}
  location: MESH_INTERNAL
  resolution: STATIC
  endpoints:
  - {address: 10.0.0.1, ports: {mysql: 3308}, weight: 2}
  - {address: \"unix:///run/db.sock\"}
  exportTo: [\".\"]
";

#[test]
fn service_entries() {
    let resources = clean(SERVICE_ENTRY);
    let [Resource::ServiceEntry(entry)] = &resources[..] else {
        panic!("{resources:?}")
    };
    let endpoint = |address: &str, ports, weight| WorkloadEntry {
        address: address.into(),
        ports,
        weight,
        is_pod: false,
        ..WorkloadEntry::default()
    };
    assert_eq!(
        entry.spec,
        ServiceEntry {
            hosts: strings(["db.example.com"]),
            addresses: vec![
                "10.1.0.0/16".parse().unwrap(),
                "10.2.0.1/32".parse().unwrap()
            ],
            ports: vec![ServiceEntryPort {
                number: 3306,
                protocol: "MySQL".into(),
                name: "mysql".into(),
                target: Some(3307),
            }],
            mesh_internal: true,
            resolution: Resolution::Static,
            endpoints: vec![
                endpoint("10.0.0.1", BTreeMap::from([("mysql".into(), 3308)]), 2),
                endpoint("unix:///run/db.sock", BTreeMap::new(), 0),
            ],
            selector: None,
            export_to: Some(strings(["."])),
        }
    );
}

#[test]
fn invalid_service_entries() {
    for (from, to, code, field) in [
        ("[db.example.com]", "[]", "SCA0200", "spec.hosts"),
        ("[db.example.com]", "[\"*\"]", "SCA0200", "spec.hosts[0]"),
        ("[db.example.com]", "[db.*]", "SCA0200", "spec.hosts[0]"),
        ("[db.example.com]", "[a.b, c.d]", "SCA0202", "spec.ports[0]"),
        ("10.2.0.1]", "ten]", "SCA0201", "spec.addresses[1]"),
        ("10.2.0.1]", "10.0.0.0/33]", "SCA0201", "spec.addresses[1]"),
        (
            "number: 3306",
            "number: 70000",
            "SCA0103",
            "spec.ports[0].number",
        ),
        ("number: 3306, ", "", "SCA0021", "spec.ports[0].number"),
        (
            "protocol: MySQL",
            "protocol: QUIC",
            "SCA0105",
            "spec.ports[0].protocol",
        ),
        (
            "ports: {mysql: 3308}",
            "ports: {sql: 3308}",
            "SCA0203",
            "spec.endpoints[0].ports[sql]",
        ),
        (
            "10.0.0.1,",
            "db.example.com,",
            "SCA0203",
            "spec.endpoints[0].address",
        ),
        (
            "unix:///run/db.sock",
            "unix://run/db.sock",
            "SCA0203",
            "spec.endpoints[1].address",
        ),
        (
            "resolution: STATIC",
            "resolution: static",
            "SCA0024",
            "spec.resolution",
        ),
        (
            "resolution: STATIC",
            "resolution: DYNAMIC_DNS",
            "SCA0202",
            "spec.resolution",
        ),
        ("[\".\"]", "[\"*\", a]", "SCA0204", "spec.exportTo[0]"),
        ("[\".\"]", "[\".\", ns]", "SCA0204", "spec.exportTo[1]"),
        (
            "location: MESH_INTERNAL",
            "location: MESH",
            "SCA0024",
            "spec.location",
        ),
        (
            "  location",
            "  - {number: 3306, name: b, protocol: TCP}\n  location",
            "SCA0206",
            "spec.ports[1].number",
        ),
        (
            "resolution: STATIC\n  endpoints:",
            "resolution: STATIC\n  workloadSelector: {labels: {a: b}}\n  endpoints:",
            "SCA0029",
            "spec.endpoints",
        ),
    ] {
        let changed = SERVICE_ENTRY.replace(from, to);
        assert_ne!(changed, SERVICE_ENTRY, "{from}");
        let found = found(&changed);
        let found: Vec<_> = found.iter().map(|f| (f.0, f.1.as_str())).collect();
        assert!(found.contains(&(code, field)), "{from} -> {to}: {found:?}");
        assert!(decoded(&changed).resources.is_empty(), "{from} -> {to}");
    }
}

#[test]
fn which_resolution_takes_which_endpoints() {
    let one_dns = "resolution: DNS\n  endpoints: [{address: db.example.com}]\n  subjectAltNames: [";
    let spec = |spec: &str| {
        let start =
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a}\nspec:\n";
        let text = format!("{start}  hosts: [a.b]\n  ports: [{{number: 80, name: p}}]\n  {spec}\n");
        found(&text)
            .into_iter()
            .map(|f| (f.0, f.1))
            .collect::<Vec<_>>()
    };
    assert_eq!(spec(&format!("{one_dns}a]")), []);
    for (text, code) in [
        ("endpoints: [{address: 1.2.3.4}]", "SCA0202"),
        (
            "resolution: NONE\n  endpoints: [{address: 1.2.3.4}]",
            "SCA0202",
        ),
        ("resolution: DNS\n  addresses: [10.0.0.0/8]", "SCA0202"),
        (
            "resolution: DNS\n  endpoints: [{address: \"unix:///x\"}]",
            "SCA0203",
        ),
        (
            "resolution: DNS_ROUND_ROBIN\n  endpoints: [{address: a.b}, {address: c.d}]",
            "SCA0202",
        ),
    ] {
        let codes: Vec<_> = spec(text).into_iter().map(|f| f.0).collect();
        assert_eq!(codes, [code], "{text}");
    }
}

#[test]
fn mesh_config() {
    let mesh = |text: &str| match &clean(text)[..] {
        [Resource::MeshConfig(object)] => object.spec.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(mesh("accessLogFile: /dev/stdout\n"), MeshConfig::default());
    assert_eq!(
        mesh("outboundTrafficPolicy: {}\n").outbound_traffic_policy,
        OutboundTrafficPolicy::AllowAny
    );
    assert_eq!(
        mesh(
            "rootNamespace: mesh
outboundTrafficPolicy: {mode: REGISTRY_ONLY}
inboundTrafficPolicy: {mode: LOCALHOST}
defaultServiceExportTo: [\".\"]
defaultVirtualServiceExportTo: [\"~\"]
proxyListenPort: 16001
proxyInboundListenPort: 16006
defaultConfig: {interceptionMode: TPROXY, concurrency: 2, statusPort: 0, proxyMetadata: {ISTIO_DUAL_STACK: '1'}}
"
        ),
        MeshConfig {
            root_namespace: "mesh".into(),
            outbound_traffic_policy: OutboundTrafficPolicy::RegistryOnly,
            default_service_export_to: strings(["."]),
            default_virtual_service_export_to: strings(["~"]),
            proxy_listen_port: 16001,
            proxy_inbound_listen_port: 16006,
            default_config: ProxyConfig {
                interception_mode: Some(InterceptionMode::Tproxy),
                status_port: Some(0),
                proxy_metadata: [("ISTIO_DUAL_STACK".to_owned(), "1".to_owned())].into(),
            },
            inbound_localhost: true,
            cluster_domain: "cluster.local".into(),
        }
    );
    for (listed, honoured) in [
        ("[prod]", "~"),
        ("['*', prod]", "*"),
        ("['*', '.']", "."),
        ("[]", "*"),
    ] {
        let mesh = mesh(&format!("defaultServiceExportTo: {listed}\n"));
        assert_eq!(mesh.default_service_export_to, [honoured], "{listed}");
    }
    let text = "rootNamespace: Not.One\nproxyListenPort: 0\nsomethingNew: 1\ndefaultVirtualServiceExportTo: [prod, N_o]\noutboundTrafficPolicy: {mode: ALLOW_ANY_DYNAMIC_DNS}\n";
    assert_eq!(
        found(text),
        [
            ("SCA0025", "proxyListenPort".into(), 2, 18),
            ("SCA0023", "somethingNew".into(), 3, 1),
            ("SCA0240", "rootNamespace".into(), 1, 16),
            ("SCA0240", "defaultVirtualServiceExportTo[1]".into(), 4, 39),
            ("SCA0241", "outboundTrafficPolicy.mode".into(), 5, 31),
        ]
    );
    assert!(decoded(text).resources.is_empty());
}

#[test]
fn virtual_service() {
    let text = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: v, namespace: ns}
spec:
  hosts: [front]
  gateways: [mesh, ingress]
  exportTo: [\".\"]
  http:
  - route: [{destination: {host: a, port: {number: 1}}}, {destination: {host: a, port: {number: 2}}}]
    mirror: {host: b}
    mirrors: [{destination: {host: c, port: {number: 0}}}, {percentage: {value: 1}}]
  - match: [{gateways: [ingress]}, {uri: {prefix: /}}]
    route: [{destination: {host: d}}]
  - match: [{uri: {prefix: /}}, {sourceNamespace: x}, {sourceNamespace: z}]
    route: [{destination: {host: e}}]
  tls:
  - match: [{sniHosts: [f]}]
    route: [{destination: {host: f, port: {number: 443}}}]
  tcp:
  - match: [{sourceNamespace: x}]
    route: [{destination: {host: g}}]
";
    let service = match &clean(text)[..] {
        [Resource::VirtualService(object)] => object.spec.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(service.hosts, ["front"]);
    assert_eq!(service.gateways, ["mesh", "ingress"]);
    assert_eq!(service.export_to, Some(strings(["."])));
    let seen = |namespace| -> Vec<_> {
        let of = |(host, ports): (String, std::collections::BTreeSet<u16>)| {
            (host, ports.into_iter().collect::<Vec<_>>())
        };
        let destinations = service.destinations_from(namespace);
        destinations.into_iter().map(of).collect()
    };
    let all = |with_e: bool| {
        let mut all: Vec<(String, Vec<u16>)> = vec![
            ("a".into(), vec![1, 2]),
            ("b".into(), vec![]),
            ("c".into(), vec![]),
            ("d".into(), vec![]),
            ("f".into(), vec![443]),
            // Only HTTP knows source namespaces.
            ("g".into(), vec![]),
        ];
        if with_e {
            all.insert(4, ("e".into(), vec![]));
        }
        all
    };
    for (namespace, with_e) in [("x", true), ("z", true), ("ns", false)] {
        assert_eq!(seen(namespace), all(with_e), "{namespace}");
    }
}
