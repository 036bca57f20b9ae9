//! The examples of the API documentation the project started from.

use super::*;
use crate::model::sidecar::OutboundTrafficPolicy;

fn services(node: Node) -> Node {
    node.service(NS, "reviews", "10.96.0.1", &["http:9080"])
        .service(
            "prod-apis",
            "api",
            "10.96.0.2",
            &["http:9080", "tcp-db:3306"],
        )
        .service(
            "istio-system",
            "istiod",
            "10.96.0.3",
            &["https:9080", "http:8080"],
        )
        .service("other", "hidden", "10.96.0.4", &["http:9080"])
}

#[test]
fn namespaces_of_the_first_example() {
    let hosts = ["prod-us1/*", "prod-apis/*", "istio-system/*"];
    let node = services(Node::new("10.0.0.1"))
        .endpoint(NS, "reviews", "10.0.0.7")
        .sidecar(Sidecar {
            egress: vec![egress(None, "", CaptureMode::Default, &hosts)],
            outbound_traffic_policy: Some(OutboundTrafficPolicy::RegistryOnly),
            ..Sidecar::default()
        })
        .compile();
    let reviews = node.out("10.96.0.1:9080");
    reviews.direct(Reason::EgressService, &["10.0.0.7:9080"]);
    assert_eq!(
        reviews.0.service.as_deref(),
        Some("reviews.prod-us1.svc.cluster.local")
    );
    let resource = reviews.0.resource.as_ref().unwrap();
    assert_eq!(
        (resource.kind, resource.name.as_str(), resource.line),
        ("Sidecar", "default", 7)
    );
    node.out("10.96.0.2:3306").keeps(Reason::EgressService);
    let hidden = node.out("10.96.0.4:9080");
    hidden.refused(Reason::RegistryOnly);
    assert_eq!(
        hidden.0.resource.as_ref().map(|r| r.name.as_str()),
        Some("default")
    );
    node.out("10.96.0.1:9081").refused(Reason::RegistryOnly);
    node.out("127.0.0.1:9081").passes(Reason::Loopback);
    node.out("10.0.0.1:9081").passes(Reason::SelfCall);
    node.inbound("10.0.0.9", "10.0.0.1:9080")
        .passes(Reason::UndeclaredPort);
    assert_eq!(node.kinds(), []);
}

#[test]
fn unix_endpoint_and_port_listener_of_the_second_example() {
    let node = services(Node::new("10.0.0.1"))
        .sidecar(Sidecar {
            ingress: vec![ingress(
                9080,
                "",
                CaptureMode::Default,
                "unix:///var/run/someuds.sock",
            )],
            egress: vec![
                egress(
                    Some(port(9080, "HTTP")),
                    "",
                    CaptureMode::Default,
                    &["prod-us1/*"],
                ),
                egress(None, "", CaptureMode::Default, &["istio-system/*"]),
            ],
            ..Sidecar::default()
        })
        .compile();
    let inbound = node.inbound("10.0.0.9", "10.0.0.1:9080");
    inbound.is(
        Path::Relay,
        Reason::IngressListener,
        &["unix:///var/run/someuds.sock"],
    );
    assert_eq!(inbound.0.listener.as_deref(), Some("ingress *:9080"));
    node.inbound("10.0.0.1", "10.0.0.1:9080")
        .passes(Reason::SelfCall);
    node.out("10.96.0.1:9080").keeps(Reason::EgressService);
    // The port listener's namespace only; HTTPS has the address for its key, so it stays.
    node.out("10.96.0.2:9080").passes(Reason::AllowAny);
    node.out("10.96.0.3:9080").keeps(Reason::EgressService);
    node.out("10.96.0.3:8080").keeps(Reason::EgressService);
}

#[test]
fn no_ip_tables() {
    let mysql = entry("mysql.foo.com", 3306, "MYSQL", Resolution::Dns);
    let sidecar = Sidecar {
        selector: Some(map([("app", "productpage")])),
        ingress: vec![ingress(9080, "", CaptureMode::None, "127.0.0.1:8080")],
        egress: vec![egress(
            Some(port(3306, "MYSQL")),
            "127.0.0.1",
            CaptureMode::None,
            &["*/mysql.foo.com"],
        )],
        ..Sidecar::default()
    };
    let node = Node::new("")
        .annotate(MODE, "NONE")
        .entry("external-svc-mysql", mysql);
    let node = node.sidecar(sidecar).dns("mysql.foo.com", &["192.0.2.7"]);
    let compiled = node.compile();
    assert!(compiled.node.dns.contains("mysql.foo.com"));
    let mysql = compiled.out("127.0.0.1:3306");
    mysql.direct(Reason::EgressListener, &["192.0.2.7:3306"]);
    assert_eq!(mysql.0.service.as_deref(), Some("mysql.foo.com"));
    compiled
        .out("192.0.2.7:3306")
        .passes(Reason::InterceptionNone);
    for src in ["10.0.0.9", "127.0.0.1"] {
        let inbound = compiled.inbound(src, "10.0.0.1:9080");
        inbound.direct(Reason::IngressListener, &["127.0.0.1:8080"]);
        assert_eq!(inbound.0.listener.as_deref(), Some("ingress 0.0.0.0:9080"));
    }
    compiled
        .inbound("10.0.0.9", "10.0.0.1:9081")
        .passes(Reason::InterceptionNone);
    assert_eq!(compiled.plan().listen_ports, [8080].into());

    // Until the name is resolved there is nowhere to go.
    let unresolved = node.dns("mysql.foo.com", &[]).compile();
    unresolved.out("127.0.0.1:3306").refused(Reason::NoEndpoint);
    assert_eq!(unresolved.kinds(), [FindingKind::NoEndpoint]);
    assert!(unresolved.node.dns.contains("mysql.foo.com"));
}

#[test]
fn partial_ip_tables() {
    let node = Node::new("172.16.1.32,192.168.0.32")
        .annotate(INCLUDE_RANGES, "192.168.0.0/16")
        .service(NS, "inside", "192.168.7.1", &["http:80:8080"])
        .service(NS, "outside", "10.96.0.1", &["http:80"])
        .endpoint(NS, "inside", "192.168.7.9")
        .sidecar(Sidecar {
            selector: Some(map([("app", "productpage")])),
            ingress: vec![ingress(
                80,
                "172.16.1.32",
                CaptureMode::None,
                "127.0.0.1:8080",
            )],
            egress: vec![egress(None, "", CaptureMode::Iptables, &["*/*"])],
            outbound_traffic_policy: Some(OutboundTrafficPolicy::RegistryOnly),
            ..Sidecar::default()
        })
        .compile();
    node.inbound("10.0.0.9", "172.16.1.32:80")
        .direct(Reason::IngressListener, &["127.0.0.1:8080"]);
    node.inbound("10.0.0.9", "192.168.0.32:80")
        .passes(Reason::UndeclaredPort);
    node.inbound("10.0.0.9", "172.16.1.32:81")
        .passes(Reason::UndeclaredPort);
    node.out("192.168.7.1:80")
        .direct(Reason::EgressService, &["192.168.7.9:8080"]);
    node.out("192.168.7.1:81").refused(Reason::RegistryOnly);
    node.out("10.96.0.1:80").passes(Reason::NotIncluded);
    node.out("8.8.8.8:80").passes(Reason::NotIncluded);
    assert_eq!(
        node.plan().outbound.exact.len(),
        1,
        "no rule for what is not captured"
    );
}
