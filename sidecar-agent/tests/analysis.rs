//! What is found across resources, with its place; what decided, with its place. From text to
//! diagnostics, without a kernel.

use std::{collections::BTreeSet, net::SocketAddr};

use sidecar_agent::{
    compile::{self, NodePlan, Target, UnixAddr, in_use},
    explain::{self, Connection, Explanation},
    model::{
        Compat,
        diagnostic::{Diagnostic, Severity},
    },
    source::files::{File, Store, Update},
};
use sidecar_common::{
    Endpoint, Path, Reason,
    decide::{Direction, Transport},
};

const SERVICES: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: prod}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: other, namespace: prod}
spec: {clusterIP: 10.96.0.2, selector: {app: other}, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: egress-proxy, namespace: prod}
spec:
  hosts: [proxy.example.com]
  addresses: [10.97.0.1]
  ports: [{number: 3128, name: tcp, protocol: TCP}]
  resolution: STATIC
  endpoints: [{address: 10.1.0.1}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata:
  name: app
  namespace: prod
  annotations:
    capture.sidecar-agent.io/cgroup: app
    capture.sidecar-agent.io/netns: /run/netns/app
    traffic.sidecar.istio.io/excludeOutboundPorts: "9999"
    traffic.sidecar.istio.io/excludeInboundPorts: "7777"
spec: {address: 10.0.0.1, labels: {app: app}}
"#;

fn sidecar(spec: &str) -> String {
    let spec = spec.trim_matches('\n').replace('\n', "\n  ");
    format!(
        "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: s, namespace: prod}}\nspec:\n  {spec}\n"
    )
}

fn file(name: &str, text: &str) -> File {
    (name.into(), Ok(text.into()))
}

struct Read {
    update: Update,
    node: NodePlan,
    found: Vec<Diagnostic>,
}

fn read_as(compat: Compat, files: &[(&str, &str)]) -> Read {
    let files = files.iter().map(|(name, text)| file(name, text)).collect();
    let update = Store::new(compat).update(files);
    let node = compile::plans(&update.snapshot);
    let mut found = update.diagnostics.clone();
    found.extend(update.places.diagnostics(&node.findings));
    Read {
        update,
        node,
        found,
    }
}

fn read(spec: &str) -> Read {
    read_as(
        Compat::Current,
        &[("a.yaml", SERVICES), ("s.yaml", &sidecar(spec))],
    )
}

impl Read {
    /// Code, line, and the text at the place of each diagnostic of `s.yaml`.
    fn found(&self) -> Vec<(&str, u32, &str)> {
        let of = |found: &'_ Diagnostic| {
            let at = found.location.as_ref().unwrap();
            (&*at.file == "s.yaml").then_some(())?;
            Some(at.line)
        };
        self.found
            .iter()
            .filter_map(|found| {
                let line = of(found)?;
                let at = found.location.as_ref()?;
                Some((found.code, line, &at.text[at.span.clone()]))
            })
            .collect()
    }

    fn explain(&self, direction: Direction, dst: &str) -> Explanation {
        let connection = Connection {
            direction,
            ..Connection::outbound(dst.parse().unwrap())
        };
        explain::of_workload(
            &self.node.workloads[0],
            self.node.mesh.as_ref(),
            &connection,
        )
    }

    /// Reason, file, line of what decided.
    fn decided(&self, direction: Direction, dst: &str) -> (Reason, String, u32) {
        let explained = self.explain(direction, dst);
        let place = explained.resource.as_ref().map(|resource| {
            let at = self
                .update
                .places
                .locate(resource, &explained.field)
                .unwrap();
            (at.file.to_string(), at.line)
        });
        let (file, line) = place.unwrap_or_default();
        (explained.reason, file, line)
    }
}

#[test]
fn a_sensible_sidecar_has_no_findings() {
    let read = read(
        "egress:\n- port: {number: 80, protocol: HTTP}\n  hosts: [./web.prod.svc.cluster.local, ./other.prod.svc.cluster.local]\n- hosts: ['./*', 'istio-system/*', '~x/y.z']\n",
    );
    assert_eq!(read.found(), []);
}

#[test]
fn hosts_that_are_written_to_be_on_the_safe_side_need_not_match() {
    let spec = |hosts: &str| {
        sidecar(&format!("egress:\n- hosts: [{hosts}]\n"))
            .replace("namespace: prod", "namespace: elsewhere")
    };
    for (hosts, found) in [
        ("'./*'", &[][..]),
        ("istio-system/*, ~prod/*", &[]),
        ("./x.y", &["SCA0403"]),
        ("other/*", &["SCA0403"]),
    ] {
        let read = read_as(
            Compat::Current,
            &[("a.yaml", SERVICES), ("s.yaml", &spec(hosts))],
        );
        let codes: Vec<_> = read.found.iter().map(|found| found.code).collect();
        assert_eq!(codes, found, "{hosts}");
    }
}

#[test]
fn hosts_that_match_nothing_are_shown_where_they_are() {
    let read = read(
        "egress:\n- hosts:\n  - prod/web.prod.svc.cluster.local\n  - prod/wbe.prod.svc.cluster.local\n  - typo/*\n  - '*/*.example.org'\n",
    );
    assert_eq!(
        read.found(),
        [
            ("SCA0403", 8, "prod/wbe.prod.svc.cluster.local"),
            ("SCA0403", 9, "typo/*"),
            ("SCA0403", 10, "'*/*.example.org'"),
        ]
    );
}

#[test]
fn a_host_of_a_virtual_service_matches_something() {
    let vs = "apiVersion: networking.istio.io/v1beta1\nkind: VirtualService\nmetadata: {name: v, namespace: prod}\nspec: {hosts: [front.example.org], EXPORT http: [{match: [{uri: {prefix: /}}], route: [{destination: {host: web, port: {number: 80}}}]}]}\n";
    let spec = sidecar("egress:\n- hosts: [prod/front.example.org]\n");
    for (export, codes) in [
        ("", &[][..]),
        ("exportTo: [elsewhere],", &["SCA0403"]),
        ("exportTo: [prod],", &[]),
        ("exportTo: ['.'],", &[]),
        ("exportTo: ['~', prod],", &["SCA0403"]),
        ("exportTo: ['~', '*'],", &[]),
        ("gateways: [ingress],", &["SCA0403"]),
    ] {
        let vs = vs.replace("EXPORT", export);
        let read = read_as(
            Compat::Current,
            &[("a.yaml", SERVICES), ("v.yaml", &vs), ("s.yaml", &spec)],
        );
        let found: Vec<_> = read.found.iter().map(|found| found.code).collect();
        assert_eq!(found, codes, "{export}: {:?}", read.found);
        // Short names are services of its namespace.
        let service = &read.update.snapshot.virtual_services[0];
        assert_eq!(service.spec.destinations["web"], [80].into());
    }
}

#[test]
fn virtual_services_are_exported_as_the_mesh_says_where_they_do_not() {
    let vs = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v, namespace: prod}\nspec: {EXPORT hosts: [front.example.org]}\n";
    let mesh = "defaultVirtualServiceExportTo: [TO]\n";
    for (of_mesh, export, codes) in [
        ("'*'", "", &[][..]),
        ("'.'", "", &[]),
        ("elsewhere", "", &["SCA0403"]),
        ("elsewhere", "exportTo: [],", &["SCA0403"]),
        ("elsewhere", "exportTo: ['*'],", &[]),
        ("'~'", "", &["SCA0403"]),
    ] {
        let files = [
            ("a.yaml", SERVICES),
            ("m.yaml", &mesh.replace("TO", of_mesh)),
            (
                "s.yaml",
                &sidecar("egress:\n- hosts: [prod/front.example.org]\n"),
            ),
            ("v.yaml", &vs.replace("EXPORT", export)),
        ];
        let read = read_as(Compat::Current, &files);
        let found: Vec<_> = read.found.iter().map(|found| found.code).collect();
        assert_eq!(found, codes, "{of_mesh}, {export}");
    }
}

#[test]
fn a_sidecar_for_workloads_in_ambient_mode() {
    let services = SERVICES.replace(
        "    capture.sidecar-agent.io/cgroup",
        "    ambient.istio.io/redirection: enabled\n    capture.sidecar-agent.io/cgroup",
    );
    let spec = sidecar("workloadSelector:\n  labels: {app: app}\negress:\n- hosts: ['./*']\n");
    let read = read_as(Compat::Current, &[("a.yaml", &services), ("s.yaml", &spec)]);
    assert_eq!(read.found(), [("SCA0405", 6, "labels")]);
}

#[test]
fn ports_that_no_service_has() {
    let read = read(
        "egress:\n- port: {number: 8080, protocol: HTTP}\n  hosts: ['./*']\n- hosts: ['./*']\n",
    );
    assert_eq!(read.found(), [("SCA0404", 6, "8080")]);
}

#[test]
fn services_hidden_by_a_listener_with_a_port() {
    let read = read(
        "egress:\n- port: {number: 80, protocol: HTTP}\n  hosts: [./web.prod.svc.cluster.local]\n- hosts: ['./*']\n",
    );
    let [(code, line, _)] = read.found()[..] else {
        panic!("{:?}", read.found)
    };
    assert_eq!((code, line), ("SCA0424", 8));
    let message = &read.found.last().unwrap().message;
    assert!(
        message.contains("other.prod") && !message.contains("web.prod"),
        "{message}"
    );
}

#[test]
fn reserved_ports_have_no_listener() {
    let with = |port: &str| {
        SERVICES.replace(
            "ports: [{name: http, port: 80}]",
            &format!("ports: [{{name: http, port: {port}}}]"),
        )
    };
    let spec = sidecar(
        "ingress:\n- port: {number: 15021, protocol: HTTP}\n  defaultEndpoint: 127.0.0.1:80\negress:\n- port: {number: 15001, protocol: HTTP}\n  hosts: ['./*']\n- hosts: ['./*']\n",
    );
    let read = read_as(
        Compat::Current,
        &[("a.yaml", &with("15001")), ("s.yaml", &spec)],
    );
    let found: Vec<_> = read
        .found()
        .iter()
        .map(|(code, line, _)| (*code, *line))
        .collect();
    assert_eq!(found, [("SCA0425", 9), ("SCA0425", 6)]);
}

#[test]
fn the_last_good_version_is_shown_where_it_broke() {
    let good = sidecar("egress:\n- hosts: [typo/*]\n");
    let mut store = Store::default();
    store.update(vec![file("a.yaml", SERVICES), file("s.yaml", &good)]);
    let broken = format!("# moved\n\n{}", good.replace("typo/*", "nonsense"));
    let update = store.update(vec![file("a.yaml", SERVICES), file("s.yaml", &broken)]);
    let at = |code| {
        let found = update.diagnostics.iter().find(|found| found.code == code);
        let at = found.unwrap().location.as_ref().unwrap();
        (at.line, at.text[at.span.clone()].to_owned())
    };
    assert_eq!(
        at("SCA0009"),
        (3, "apiVersion: networking.istio.io/v1".into())
    );
    // What is in force is looked up in the text that it comes from.
    let node = compile::plans(&update.snapshot);
    let found = update.places.diagnostics(&node.findings);
    let place = found[0].location.as_ref().unwrap();
    assert_eq!((place.line, &place.text[place.span.clone()]), (6, "typo/*"));

    let update = store.update(vec![file("a.yaml", SERVICES), file("s.yaml", "[[[")]);
    let last_good = update
        .diagnostics
        .iter()
        .find(|found| found.code == "SCA0009");
    assert!(last_good.unwrap().location.is_some());
}

#[test]
fn ingress_on_a_unix_socket_only_for_compatibility() {
    let spec = sidecar(
        "ingress:\n- port: {number: 0, protocol: TCP}\n  bind: unix:///run/app.sock\n  defaultEndpoint: 127.0.0.1:8080\n",
    );
    let files = [("a.yaml", SERVICES), ("s.yaml", spec.as_str())];
    let current = read_as(Compat::Current, &files);
    assert!(
        current
            .found
            .iter()
            .any(|found| found.severity == Severity::Error)
    );
    assert!(current.update.snapshot.sidecars.is_empty());

    let old = read_as(Compat::Istio1_0, &files);
    assert_eq!(old.found(), [("SCA0123", 7, "unix:///run/app.sock")]);
    let listeners: Vec<_> = old.node.workloads[0]
        .plan
        .listeners()
        .filter_map(|listener| Some((listener.unix_bind()?.clone(), listener.targets.to_vec())))
        .collect();
    let target = Target::Tcp("127.0.0.1:8080".parse().unwrap());
    assert_eq!(
        listeners,
        [(UnixAddr::Path("/run/app.sock".into()), vec![target])]
    );
}

#[test]
fn unknown_destinations_go_to_the_egress_proxy() {
    let spec = |host: &str, more: &str| {
        format!(
            "egress:\n- hosts: ['./*']\noutboundTrafficPolicy:\n  mode: ALLOW_ANY\n  egressProxy: {{host: {host}, port: {{number: 3128}}{more}}}\n"
        )
    };
    let good = read(&spec("proxy.example.com", ""));
    assert_eq!(good.found(), []);
    let out = good.explain(Direction::Outbound, "8.8.8.8:443");
    assert_eq!((out.path, out.reason), (Path::Direct, Reason::EgressProxy));
    assert_eq!(out.targets, [Target::Tcp("10.1.0.1:3128".parse().unwrap())]);
    assert_eq!(out.field, "spec.outboundTrafficPolicy.egressProxy");
    // A socket of the other family needs the relay.
    let out = good.explain(Direction::Outbound, "[2001:db8::1]:443");
    assert_eq!((out.path, out.reason), (Path::Relay, Reason::EgressProxy));
    let out = good.explain(Direction::Outbound, "8.8.8.8:9999");
    assert_eq!(out.reason, Reason::ExcludedPort);

    for bad in [
        spec("nowhere.example.com", ""),
        spec("proxy.example.com", ", subset: v1"),
    ] {
        let bad = read(&bad);
        let codes: Vec<_> = bad
            .found()
            .iter()
            .map(|(code, line, _)| (*code, *line))
            .collect();
        assert_eq!(codes, [("SCA0423", 9)]);
        let out = bad.explain(Direction::Outbound, "8.8.8.8:443");
        assert_eq!((out.path, out.reason), (Path::Deny, Reason::NeedsProxy));
    }
}

#[test]
fn entries_of_one_host_share_their_endpoints() {
    let entry = |name: &str, endpoint: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: prod}}\nspec: {{hosts: [db.example.com], addresses: [10.97.0.9], ports: [{{number: 5432, name: tcp, protocol: TCP}}], resolution: STATIC, endpoints: [{{address: {endpoint}}}]}}\n"
        )
    };
    let services = [
        SERVICES,
        &entry("one", "10.2.0.1"),
        &entry("two", "10.2.0.2"),
    ]
    .concat();
    let read = read_as(Compat::Current, &[("a.yaml", &services)]);
    let out = read.explain(Direction::Outbound, "10.97.0.9:5432");
    let targets: Vec<_> = out.targets.iter().map(ToString::to_string).collect();
    assert_eq!(targets, ["10.2.0.1:5432", "10.2.0.2:5432"]);
    assert!(read.found.is_empty(), "{:?}", read.found);
}

#[test]
fn every_decision_names_what_decided() {
    let mesh = "rootNamespace: istio-system\noutboundTrafficPolicy:\n  mode: REGISTRY_ONLY\n";
    let spec = sidecar(
        "ingress:\n- port: {number: 9080, protocol: HTTP}\n  defaultEndpoint: 127.0.0.1:8080\negress:\n- hosts: ['./*']\n",
    );
    let read = read_as(
        Compat::Current,
        &[("a.yaml", SERVICES), ("m.yaml", mesh), ("s.yaml", &spec)],
    );
    let out = |dst| read.decided(Direction::Outbound, dst);
    let inbound = |dst| read.decided(Direction::Inbound, dst);
    let at = |reason, file: &str, line| (reason, file.to_owned(), line);
    assert_eq!(out("8.8.8.8:80"), at(Reason::RegistryOnly, "m.yaml", 3));
    assert_eq!(out("8.8.8.8:9999"), at(Reason::ExcludedPort, "a.yaml", 30));
    assert_eq!(out("10.96.0.1:80"), at(Reason::EgressService, "s.yaml", 9));
    assert_eq!(
        inbound("10.0.0.1:9080"),
        at(Reason::IngressListener, "s.yaml", 6)
    );
    assert_eq!(
        inbound("10.0.0.1:9081"),
        at(Reason::UndeclaredPort, "s.yaml", 5)
    );
    // Built in: no resource says so.
    assert_eq!(out("127.0.0.1:80"), at(Reason::Loopback, "", 0));
}

#[test]
fn an_application_in_the_way_of_a_listener() {
    let endpoint = |text: &str| Endpoint::from(text.parse::<SocketAddr>().unwrap());
    let plan_of = |target: &str| {
        read(&format!(
            "ingress:\n- port: {{number: 9080, protocol: HTTP}}\n  bind: 10.0.0.1\n  captureMode: NONE\n  defaultEndpoint: {target}\n"
        ))
    };
    let found = |read: &Read, listening: &str| {
        let plan = &read.node.workloads[0].plan;
        assert_eq!(in_use::ports(plan), [9080].into());
        let listening: BTreeSet<_> = [endpoint(listening)].into();
        let found = in_use::collisions(plan, "prod/app", &listening);
        let found = read.update.places.diagnostics(&found);
        found
            .iter()
            .map(|found| {
                assert!(found.message.contains("sk_lookup"), "{}", found.message);
                (found.code, found.location.as_ref().unwrap().line)
            })
            .collect::<Vec<_>>()
    };
    let other_port = plan_of("127.0.0.1:8080");
    for in_the_way in ["10.0.0.1:9080", "0.0.0.0:9080", "[::]:9080"] {
        assert_eq!(
            found(&other_port, in_the_way),
            [("SCA0426", 6)],
            "{in_the_way}"
        );
    }
    for elsewhere in [
        "127.0.0.1:9080",
        "10.0.0.2:9080",
        "0.0.0.0:8080",
        "[::1]:9080",
    ] {
        assert_eq!(found(&other_port, elsewhere), [], "{elsewhere}");
    }
    // The socket that the listener leads to.
    assert_eq!(found(&plan_of("127.0.0.1:9080"), "0.0.0.0:9080"), []);
}

const MORE_SERVICES: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: other-proxy, namespace: prod}
spec:
  hosts: [other-proxy.example.com]
  addresses: [10.97.0.2]
  ports: [{number: 3128, name: tcp, protocol: TCP}]
  resolution: STATIC
  endpoints: [{address: 10.1.0.2}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: by-name, namespace: prod}
spec:
  hosts: [by-name.example.com]
  ports: [{number: 443, name: tls, protocol: TLS}]
  resolution: DNS
";

/// What is found where of resources like these, beside those of [`SERVICES`] as `services`.
fn found_with(services: &str, mesh: &str, spec: &str) -> Vec<(String, String, u32)> {
    let spec = sidecar(spec);
    let read = read_as(
        Compat::Current,
        &[
            ("a.yaml", services),
            ("b.yaml", MORE_SERVICES),
            ("m.yaml", mesh),
            ("s.yaml", &spec),
        ],
    );
    let of = |found: &Diagnostic| {
        let at = found.location.as_ref().unwrap();
        (found.code.to_owned(), at.file.to_string(), at.line)
    };
    read.found.iter().map(of).collect()
}

/// Why a connection of a workload with a proxy is decided so, under a setting of its own (line 10)
/// and under those of the mesh; and file and line of what decided.
fn decided_under(setting: &str, mesh: &str, connection: &Connection<'_>) -> (Reason, String, u32) {
    const WORKLOAD: &str = "apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata:
  name: app
  namespace: prod
  annotations:
    capture.sidecar-agent.io/cgroup: app
    capture.sidecar-agent.io/netns: /run/netns/app
    capture.sidecar-agent.io/proxy: external
    SETTING
spec:
  address: 10.0.0.1
";
    let workload = WORKLOAD.replace("SETTING", setting);
    let files = [("w.yaml", &*workload), ("m.yaml", mesh)];
    let read = read_as(Compat::Current, &files);
    assert_eq!(read.found, [], "{setting}{mesh}");
    let workload = &read.node.workloads[0];
    let explained = explain::of_workload(workload, read.node.mesh.as_ref(), connection);
    let resource = explained.resource.as_ref().unwrap();
    let places = &read.update.places;
    let at = places.locate(resource, &explained.field).unwrap();
    (explained.reason, at.file.to_string(), at.line)
}

fn outbound(dst: &str) -> Connection<'static> {
    Connection::outbound(dst.parse().unwrap())
}

#[test]
fn the_annotation_that_decides_is_shown() {
    let by_interface = |direction| Connection {
        direction,
        src: Some([10, 0, 0, 9].into()),
        interface: Some("net1"),
        ..outbound("8.8.8.8:80")
    };
    let own = "proxy.istio.io/config: '{proxyMetadata: {ISTIO_OUTBOUND_OWNER_GROUPS: \"\"}}'";
    for (setting, connection, reason) in [
        (
            "capture.sidecar-agent.io/outbound-owner-groups: ''",
            outbound("8.8.8.8:80"),
            Reason::OwnerGroup,
        ),
        (own, outbound("8.8.8.8:80"), Reason::OwnerGroup),
        (
            "traffic.sidecar.istio.io/excludeInterfaces: net1",
            by_interface(Direction::Outbound),
            Reason::ExcludedInterface,
        ),
        (
            "traffic.sidecar.istio.io/kubevirtInterfaces: net1",
            by_interface(Direction::Inbound),
            Reason::VirtualInterface,
        ),
        (
            "capture.sidecar-agent.io/dual-stack: 'false'",
            outbound("[2001:db8::1]:80"),
            Reason::Ipv6Off,
        ),
    ] {
        let decided = decided_under(setting, "", &connection);
        assert_eq!(decided, (reason, "w.yaml".into(), 10), "{setting}");
    }
    // Its address is IPv4.
    let decided = decided_under("", "", &outbound("[2001:db8::1]:80"));
    assert_eq!(decided, (Reason::Ipv6Off, "w.yaml".into(), 12));
}

#[test]
fn the_setting_of_the_mesh_that_decides_is_shown() {
    let variable = |text: &str| format!("defaultConfig:\n  proxyMetadata:\n    {text}\n");
    let udp = Connection {
        transport: Transport::Udp,
        ..outbound("8.8.8.8:53")
    };
    let including = "traffic.sidecar.istio.io/includeOutboundIPRanges: 127.0.0.0/8";
    for (setting, mesh, connection, reason, line) in [
        (
            "",
            variable("ISTIO_OUTBOUND_OWNER_GROUPS: '5'"),
            outbound("8.8.8.8:80"),
            Reason::OwnerGroup,
            3,
        ),
        (
            "",
            variable("ISTIO_META_DNS_CAPTURE: 'true'"),
            udp,
            Reason::Dns,
            3,
        ),
        (
            "",
            "defaultConfig:\n  interceptionMode: NONE\n".into(),
            outbound("8.8.8.8:80"),
            Reason::InterceptionNone,
            2,
        ),
        (
            including,
            variable("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR: 127.0.0.1/8"),
            outbound("127.0.0.9:80"),
            Reason::Loopback,
            3,
        ),
    ] {
        let decided = decided_under(setting, &mesh, &connection);
        assert_eq!(decided, (reason, "m.yaml".into(), line), "{mesh}");
    }
}

/// A mesh's setting that cannot be used is found in the `MeshConfig`, which then is not used.
#[test]
fn settings_of_the_mesh() {
    let mesh = "defaultConfig:
  statusPort: 65536
  proxyMetadata:
    ISTIO_META_DNS_CAPTURE: yes please
    ISTIO_OUTBOUND_OWNER_GROUPS: 1,root
    SOMETHING_ELSE: yes please
    INVALID_DROP: true
";
    let read = read_as(Compat::Current, &[("m.yaml", mesh)]);
    let found = |found: &Diagnostic| (found.code, found.location.as_ref().unwrap().line);
    assert_eq!(
        read.found.iter().map(found).collect::<Vec<_>>(),
        [
            ("SCA0025", 2),
            ("SCA0020", 7),
            ("SCA0240", 4),
            ("SCA0240", 5)
        ]
    );
}

/// Each place in the code that finds something, by itself.
#[test]
fn every_finding_is_found_and_shown_where_it_is() {
    let captured = "rootNamespace: istio-system\n";
    let not_captured = "defaultConfig: {interceptionMode: NONE}\n";
    let nowhere = SERVICES
        .replace("    capture.sidecar-agent.io/netns: /run/netns/app\n", "")
        .replace(
            "spec: {address: 10.0.0.1, labels",
            "spec: {address: app.example.com, labels",
        );
    let proxied = SERVICES.replace(
        "capture.sidecar-agent.io/netns: /run/netns/app",
        "capture.sidecar-agent.io/proxy: external",
    );
    let bad_annotation = SERVICES.replace("\"9999\"", "\"9999,x\"");
    let without_effect = SERVICES.replace(
        "traffic.sidecar.istio.io/excludeOutboundPorts: \"9999\"",
        "capture.sidecar-agent.io/dns-capture: \"true\"\n    capture.sidecar-agent.io/dns-capture-all: \"0\"",
    );
    let ingress = |port, more: &str| {
        format!(
            "ingress:\n- port: {{number: {port}, protocol: TCP}}\n  defaultEndpoint: 127.0.0.1:1\n{more}"
        )
    };
    let egress = |port: &str, more: &str, hosts: &str| {
        format!("egress:\n- port: {{{port}}}\n{more}  hosts: [{hosts}]\n")
    };
    let none = "  captureMode: NONE\n";
    let unix = "  bind: unix:///run/x.sock\n";
    let (proxy, by_name) = ("./proxy.example.com", "./by-name.example.com");
    let both = "./*.prod.svc.cluster.local";
    for (services, mesh, spec, expected) in [
        // An ingress listener on an excluded port.
        (
            SERVICES,
            captured,
            ingress(7777, ""),
            ("SCA0420", "s.yaml", 6),
        ),
        // A proxy's workload in the host's network namespace.
        (
            &*proxied,
            captured,
            "egress:\n- hosts: ['./*']\n".into(),
            ("SCA0420", "a.yaml", 22),
        ),
        // One that is to be captured where nothing is.
        (
            SERVICES,
            not_captured,
            ingress(9080, "  captureMode: IPTABLES\n"),
            ("SCA0420", "s.yaml", 6),
        ),
        // One of a workload that is nowhere.
        (
            &*nowhere,
            captured,
            ingress(9080, ""),
            ("SCA0420", "s.yaml", 6),
        ),
        // A captured egress listener on loopback.
        (
            SERVICES,
            captured,
            egress("number: 3128, protocol: TCP", "  bind: 127.0.0.1\n", proxy),
            ("SCA0420", "s.yaml", 6),
        ),
        // Several TCP services at one address.
        (
            SERVICES,
            captured,
            egress("number: 3128, protocol: TCP", none, "./*.example.com"),
            ("SCA0421", "s.yaml", 6),
        ),
        // Several services on one unix socket.
        (
            SERVICES,
            captured,
            egress(
                "number: 0, protocol: TCP",
                unix,
                "./proxy.example.com, ./other-proxy.example.com",
            ),
            ("SCA0421", "s.yaml", 6),
        ),
        // Services without an endpoint, called at an address and at a unix socket.
        (
            SERVICES,
            captured,
            egress("number: 443, protocol: TLS", none, by_name),
            ("SCA0422", "s.yaml", 6),
        ),
        (
            SERVICES,
            captured,
            egress("number: 0, protocol: TLS", unix, by_name),
            ("SCA0422", "s.yaml", 6),
        ),
        // Several HTTP services at one address.
        (
            SERVICES,
            captured,
            egress("number: 80, protocol: HTTP", none, both),
            ("SCA0423", "s.yaml", 6),
        ),
        // Forward proxies: a real one, and one that is captured.
        (
            SERVICES,
            captured,
            egress("number: 3128, protocol: HTTP_PROXY", none, proxy),
            ("SCA0423", "s.yaml", 6),
        ),
        (
            SERVICES,
            captured,
            egress("number: 3128, protocol: HTTP_PROXY", "", proxy),
            ("SCA0423", "s.yaml", 6),
        ),
        // A service that is recognised by its name only.
        (
            SERVICES,
            captured,
            egress("number: 443, protocol: TLS", "", by_name),
            ("SCA0423", "s.yaml", 6),
        ),
        // A unix socket for no service.
        (
            SERVICES,
            captured,
            egress(
                "number: 0, protocol: TCP",
                "  bind: unix:///run/x.sock\n",
                "'./*.example.net'",
            ),
            ("SCA0404", "s.yaml", 8),
        ),
        // An egress proxy without an endpoint.
        (
            SERVICES,
            captured,
            "outboundTrafficPolicy:\n  mode: ALLOW_ANY\n  \
             egressProxy: {host: by-name.example.com, port: {number: 443}}\n"
                .into(),
            ("SCA0422", "s.yaml", 7),
        ),
        (
            &*bad_annotation,
            captured,
            "egress:\n- hosts: ['./*']\n".into(),
            ("SCA0410", "a.yaml", 30),
        ),
        (
            &*without_effect,
            captured,
            "egress:\n- hosts: ['./*']\n".into(),
            ("SCA0412", "a.yaml", 30),
        ),
    ] {
        let (code, file, line) = expected;
        let found = found_with(services, mesh, &spec);
        let of_code: Vec<_> = found.iter().filter(|found| found.0 == code).collect();
        let [found_once] = &of_code[..] else {
            panic!("{code}: {spec}\n{found:?}")
        };
        assert_eq!(
            (&*found_once.1, found_once.2),
            (file, line),
            "{code}: {spec}"
        );
    }
}

#[test]
fn workloads_that_share_a_cgroup() {
    let second = SERVICES
        .rsplit("---")
        .next()
        .unwrap()
        .replace("name: app\n", "name: within\n")
        .replace("cgroup: app", "cgroup: app/within");
    let read = read_as(
        Compat::Current,
        &[("a.yaml", SERVICES), ("w.yaml", &second)],
    );
    let [found] = &read.found[..] else {
        panic!("{:?}", read.found)
    };
    let at = found.location.as_ref().unwrap();
    assert_eq!((found.code, &*at.file, at.line), ("SCA0411", "w.yaml", 8));
}

#[test]
fn sidecars_that_conflict_or_select_nothing() {
    let named = |name: &str, selector: &str| {
        let spec = format!("{selector}\negress:\n- hosts: ['./*']\n");
        sidecar(&spec).replace("name: s,", &format!("name: {name},"))
    };
    let selecting = |name: &str, app: &str| {
        named(
            name,
            &format!("workloadSelector:\n  labels: {{app: {app}}}"),
        )
    };
    for (first, second, code, line) in [
        (selecting("a", "app"), selecting("b", "app"), "SCA0400", 5),
        (named("a", ""), named("b", ""), "SCA0401", 4),
        (
            selecting("a", "app"),
            selecting("b", "nobody"),
            "SCA0402",
            6,
        ),
    ] {
        let read = read_as(
            Compat::Current,
            &[
                ("a.yaml", SERVICES),
                ("s.yaml", &first),
                ("t.yaml", &second),
            ],
        );
        let [found] = &read.found[..] else {
            panic!("{code}: {:?}", read.found)
        };
        assert_eq!(found.code, code, "{found:?}");
        assert_eq!(found.location.as_ref().unwrap().line, line, "{found:?}");
    }
}

#[test]
fn listeners_without_a_service_of_sidecars_that_are_not_used_here() {
    let spec = sidecar("egress:\n- port: {number: 8080, protocol: HTTP}\n  hosts: ['prod/*']\n")
        .replace("namespace: prod", "namespace: elsewhere");
    let read = read_as(Compat::Current, &[("a.yaml", SERVICES), ("s.yaml", &spec)]);
    assert_eq!(read.found(), []);
    let unused = compile::unused_sidecars(&read.update.snapshot, &read.node);
    let unused = read.update.places.diagnostics(&unused);
    let found: Vec<_> = unused
        .iter()
        .map(|found| (found.code, found.location.as_ref().unwrap().line))
        .collect();
    assert_eq!(found, [("SCA0404", 6)]);
}
