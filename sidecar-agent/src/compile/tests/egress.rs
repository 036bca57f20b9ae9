use super::*;
use crate::model::{
    endpoints::{Endpoints, Subset},
    sidecar::OutboundTrafficPolicy,
};

#[test]
fn without_a_sidecar_everything_visible_is_a_service() {
    let node = Node::new("10.0.0.1")
        .service("a", "one", "10.96.0.1", &["http:80:8080", "named:81:named"])
        .service("a", "cluster", "10.96.0.2", &["tcp:90"])
        .endpoint("a", "one", "10.0.0.7")
        .endpoint("a", "one", "10.0.0.8")
        .endpoint("b", "one", "10.0.0.9")
        .compile();
    let one = node.out("10.96.0.1:80");
    one.direct(Reason::EgressService, &["10.0.0.7:8080", "10.0.0.8:8080"]);
    assert_eq!(one.0.resource.as_ref().map(|r| r.kind), Some("Service"));
    node.out("10.96.0.1:81")
        .direct(Reason::EgressService, &["10.0.0.7:7777", "10.0.0.8:7777"]);
    // Endpoints that nobody told us are the cluster's.
    node.out("10.96.0.2:90").keeps(Reason::EgressService);
    node.out("8.8.8.8:80").passes(Reason::AllowAny);
    assert_eq!(node.plan().outbound.backends.len(), 2);
}

#[test]
fn mesh_policy_holds_where_the_sidecar_is_silent() {
    let mut node = Node::new("10.0.0.1");
    node.snapshot.mesh.outbound_traffic_policy = OutboundTrafficPolicy::RegistryOnly;
    node.compile()
        .out("8.8.8.8:80")
        .refused(Reason::RegistryOnly);
    let node = node.sidecar(Sidecar {
        outbound_traffic_policy: Some(OutboundTrafficPolicy::AllowAny),
        ..Sidecar::default()
    });
    node.compile().out("8.8.8.8:80").passes(Reason::AllowAny);
}

#[test]
fn several_endpoints_share_a_group() {
    let node = Node::new("10.0.0.1")
        .service(NS, "a", "10.96.0.1,fd00::1", &["http:80", "tcp:90:80"])
        .endpoint(NS, "a", "10.0.0.7")
        .endpoint(NS, "a", "10.0.0.8")
        .endpoint(NS, "a", "fd00::7")
        .compile();
    node.out("10.96.0.1:80")
        .direct(Reason::EgressService, &["10.0.0.7:80", "10.0.0.8:80"]);
    node.out("10.96.0.1:90")
        .direct(Reason::EgressService, &["10.0.0.7:80", "10.0.0.8:80"]);
    node.out("[fd00::1]:80")
        .direct(Reason::EgressService, &["[fd00::7]:80"]);
    assert_eq!(node.plan().outbound.backends.len(), 1);
}

#[test]
fn the_other_family_and_unix_sockets_are_relayed() {
    let mut v6_only = entry("v6.example.com", 80, "TCP", Resolution::Static);
    v6_only.addresses = vec!["10.1.0.1/32".parse().unwrap()];
    v6_only.endpoints = at(&["fd00::7"]);
    let mut socket = entry("unix.example.com", 80, "TCP", Resolution::Static);
    socket.addresses = vec!["10.1.0.2/32".parse().unwrap()];
    socket.endpoints = at(&["unix:///run/s.sock"]);
    let node = Node::new("10.0.0.1")
        .entry("v6", v6_only)
        .entry("unix", socket)
        .compile();
    node.out("10.1.0.1:80")
        .is(Path::Relay, Reason::EgressService, &["[fd00::7]:80"]);
    node.out("10.1.0.2:80")
        .is(Path::Relay, Reason::EgressService, &["unix:///run/s.sock"]);
}

#[test]
fn headless_services_and_names_are_known_by_their_endpoints() {
    let mut http = entry("http.example.com", 80, "HTTP", Resolution::Dns);
    http.hosts.push("later.example.com".into());
    let node = Node::new("10.0.0.1")
        .service(NS, "db", "", &["tcp:5432"])
        .endpoint(NS, "db", "10.0.0.7")
        .entry("http", http)
        .dns("http.example.com", &["192.0.2.1", "2001:db8::1"])
        .sidecar(Sidecar {
            outbound_traffic_policy: Some(OutboundTrafficPolicy::RegistryOnly),
            ..Sidecar::default()
        })
        .compile();
    node.out("10.0.0.7:5432").keeps(Reason::EgressService);
    node.out("10.0.0.8:5432").refused(Reason::RegistryOnly);
    node.out("192.0.2.1:80").keeps(Reason::EgressService);
    node.out("[2001:db8::1]:80").keeps(Reason::EgressService);
    node.out("192.0.2.2:80").refused(Reason::RegistryOnly);
    assert_eq!(
        node.kinds(),
        [FindingKind::NeedsProxy],
        "the other host is known by name only"
    );
    assert_eq!(node.node.dns.len(), 2);
}

/// A pod of this node is known as a workload; whether it is an endpoint, the cluster tells.
#[test]
fn pods_are_endpoints_when_the_cluster_says_so() {
    let told = |name: &str, service: &str, ip: &str, port: (&str, u16)| {
        let subset = Subset {
            addresses: vec![ip.parse().unwrap()],
            ports: vec![(port.0.to_owned(), port.1)],
        };
        let spec = Endpoints {
            service: service.to_owned(),
            ready: vec![subset],
        };
        object(NS, name, spec)
    };
    let mut node = Node::new("10.0.0.1")
        .service(NS, "db", "", &["tcp:5432"])
        .service(NS, "web", "10.96.0.1", &["http:80"])
        .endpoint(NS, "db", "10.0.0.7")
        .endpoint(NS, "web", "10.0.0.8")
        .sidecar(Sidecar {
            outbound_traffic_policy: Some(OutboundTrafficPolicy::RegistryOnly),
            ..Sidecar::default()
        });
    for pod in &mut node.snapshot.workloads[1..] {
        Arc::make_mut(pod).spec.is_pod = true;
    }
    let compiled = node.compile();
    compiled.out("10.0.0.7:5432").refused(Reason::RegistryOnly);
    compiled.out("10.96.0.1:80").keeps(Reason::EgressService);
    node.snapshot.endpoints = vec![
        told("db-1", "db", "10.0.0.9", ("tcp", 5432)),
        told("db-2", "db", "10.0.0.10", ("other", 5432)),
        told("web-1", "web", "10.0.0.8", ("http", 8080)),
    ];
    let compiled = node.compile();
    compiled.out("10.0.0.7:5432").refused(Reason::RegistryOnly);
    compiled.out("10.0.0.9:5432").keeps(Reason::EgressService);
    compiled.out("10.0.0.10:5432").refused(Reason::RegistryOnly);
    compiled.out("10.96.0.1:80").keeps(Reason::EgressService);
}

#[test]
fn an_endpoint_port_of_its_own_is_led_to() {
    let mut http = entry("http.example.com", 80, "HTTP", Resolution::Static);
    http.endpoints = at(&["192.0.2.1", "192.0.2.2"]);
    http.endpoints[1].ports = [("p".to_owned(), 8080)].into();
    let mut node = Node::new("10.0.0.1").entry("http", http);
    node.snapshot.services.push(object(
        NS,
        "alias",
        Service {
            external_name: Some("alias.example.com".into()),
            ports: vec![service_port("tcp:5432")],
            ..Service::default()
        },
    ));
    let node = node
        .dns("alias.example.com", &["192.0.2.7", "192.0.2.8"])
        .compile();
    node.out("192.0.2.1:80").keeps(Reason::EgressService);
    node.out("192.0.2.2:80")
        .direct(Reason::EgressService, &["192.0.2.2:8080"]);
    // An alias takes no port for itself.
    node.out("192.0.2.8:5432").keeps(Reason::EgressService);
    node.out("192.0.2.9:5432").passes(Reason::AllowAny);
}

#[test]
fn a_tcp_entry_without_addresses_takes_its_port() {
    let db = entry("db.example.com", 5432, "TCP", Resolution::Dns);
    let tls = entry("tls.example.com", 443, "TLS", Resolution::Dns);
    let node = Node::new("10.0.0.1")
        .entry("db", db)
        .entry("tls", tls)
        .dns("db.example.com", &["192.0.2.1", "192.0.2.2"])
        .dns("tls.example.com", &["192.0.2.3"])
        .sidecar(Sidecar {
            outbound_traffic_policy: Some(OutboundTrafficPolicy::RegistryOnly),
            ..Sidecar::default()
        })
        .compile();
    node.out("8.8.8.8:5432")
        .direct(Reason::EgressService, &["192.0.2.1:5432", "192.0.2.2:5432"]);
    node.out("192.0.2.2:5432").keeps(Reason::EgressService);
    node.out("[2001:db8::1]:5432").is(
        Path::Relay,
        Reason::EgressService,
        &["192.0.2.1:5432", "192.0.2.2:5432"],
    );
    // TLS is told apart by SNI: only its own addresses are its.
    node.out("192.0.2.3:443").keeps(Reason::EgressService);
    node.out("8.8.8.8:443").refused(Reason::RegistryOnly);
}

#[test]
fn a_network_of_addresses() {
    let mut net = entry("net.example.com", 9000, "TCP", Resolution::None);
    net.addresses = vec!["10.1.0.0/16".parse().unwrap(), "fd01::/64".parse().unwrap()];
    let node = Node::new("10.0.0.1")
        .entry("net", net)
        .sidecar(Sidecar {
            outbound_traffic_policy: Some(OutboundTrafficPolicy::RegistryOnly),
            ..Sidecar::default()
        })
        .compile();
    node.out("10.1.2.3:9000").keeps(Reason::EgressService);
    node.out("[fd01::5]:9000").keeps(Reason::EgressService);
    node.out("10.2.2.3:9000").refused(Reason::RegistryOnly);
    node.out("10.1.2.3:9001").refused(Reason::RegistryOnly);
}

#[test]
fn real_listeners_per_service_port() {
    let node = Node::new("10.0.0.1,fd00::1")
        .service(NS, "a", "10.96.0.1,fd00:96::1", &["http:80"])
        .service(NS, "b", "10.96.0.2", &["http:80", "tcp:90"])
        .service(NS, "c", "10.96.0.3", &["tcp:90"])
        .endpoint(NS, "b", "10.0.0.7")
        .sidecar(Sidecar {
            egress: vec![egress(None, "", CaptureMode::None, &["*/*"])],
            ..Sidecar::default()
        })
        .compile();
    for loopback in ["127.0.0.1", "[::1]"] {
        node.out(&format!("{loopback}:80"))
            .refused(Reason::NeedsProxy);
    }
    node.out("127.0.0.1:90")
        .direct(Reason::EgressListener, &["10.0.0.7:90"]);
    node.out("[::1]:90")
        .is(Path::Relay, Reason::EgressListener, &["10.0.0.7:90"]);
    node.out("10.96.0.1:80").passes(Reason::AllowAny);
    let kinds = node.kinds();
    assert!(kinds.contains(&FindingKind::NeedsProxy), "{kinds:?}");
    assert!(kinds.contains(&FindingKind::ListenerConflict), "{kinds:?}");
}

#[test]
fn a_real_listener_without_known_endpoints_goes_to_the_virtual_address() {
    let node = Node::new("fd00::1")
        .service(NS, "a", "10.96.0.1,fd00:96::1", &["http:80:8080"])
        .sidecar(Sidecar {
            egress: vec![egress(
                Some(port(80, "HTTP")),
                "",
                CaptureMode::None,
                &["./*"],
            )],
            ..Sidecar::default()
        })
        .compile();
    node.out("[::1]:80")
        .direct(Reason::EgressListener, &["[fd00:96::1]:80"]);
    node.out("127.0.0.1:80").passes(Reason::Loopback);
}

#[test]
fn a_unix_bind_is_the_relays() {
    let node = Node::new("10.0.0.1")
        .service(NS, "a", "10.96.0.1", &["http:80", "http-b:81"])
        .endpoint(NS, "a", "10.0.0.7")
        .sidecar(Sidecar {
            egress: vec![egress(
                Some(port(0, "HTTP")),
                "unix:///run/e.sock",
                CaptureMode::Default,
                &["./*"],
            )],
            ..Sidecar::default()
        })
        .compile();
    let listener = node.plan().listener(0).unwrap();
    assert_eq!(listener.unix_bind(), Some(&unix("/run/e.sock")));
    assert_eq!(
        listener.targets[..],
        [Target::Tcp("10.0.0.7:80".parse().unwrap())]
    );
    assert!(node.plan().outbound.exact.is_empty());
    assert_eq!(node.kinds(), [FindingKind::ListenerConflict]);
}

#[test]
fn a_bind_that_is_captured() {
    let node = Node::new("10.0.0.1")
        .service(NS, "a", "10.96.0.1", &["tcp:3306"])
        .endpoint(NS, "a", "10.0.0.7")
        .sidecar(Sidecar {
            egress: vec![egress(
                Some(port(3306, "MYSQL")),
                "8.8.8.8",
                CaptureMode::Default,
                &["./*"],
            )],
            ..Sidecar::default()
        });
    node.compile()
        .out("8.8.8.8:3306")
        .direct(Reason::EgressService, &["10.0.0.7:3306"]);
    let excluded = node.annotate(EXCLUDE_RANGES, "8.8.0.0/16").compile();
    excluded.out("8.8.8.8:3306").passes(Reason::ExcludedRange);
}

#[test]
fn forward_proxies_need_a_proxy() {
    let real = egress(
        Some(port(15080, "HTTP_PROXY")),
        "127.0.0.1",
        CaptureMode::None,
        &["*/*"],
    );
    let node = Node::new("10.0.0.1")
        .service(NS, "a", "10.96.0.1", &["http:80"])
        .sidecar(Sidecar {
            egress: vec![real],
            ..Sidecar::default()
        })
        .compile();
    node.out("127.0.0.1:15080").refused(Reason::NeedsProxy);
    assert_eq!(node.kinds(), [FindingKind::NeedsProxy]);
}

#[test]
fn a_forward_proxy_does_not_go_by_udp_ports() {
    let mut node = Node::new("10.0.0.1")
        .service(NS, "a", "10.96.0.1", &["dns:53", "http:80"])
        .sidecar(Sidecar {
            egress: vec![egress(
                Some(port(3128, "HTTP_PROXY")),
                "127.0.0.1",
                CaptureMode::None,
                &["./*"],
            )],
            ..Sidecar::default()
        });
    Arc::make_mut(&mut node.snapshot.services[0]).spec.ports[0].transport = "UDP".into();
    let node = node.compile();
    node.out("127.0.0.1:3128").refused(Reason::NeedsProxy);
}
