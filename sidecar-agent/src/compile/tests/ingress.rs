use super::*;

fn with(ingress: Vec<IngressListener>) -> Sidecar {
    Sidecar {
        ingress,
        ..Sidecar::default()
    }
}

#[test]
fn a_captured_port_is_the_listeners_on_every_local_address() {
    let node = Node::new("10.0.0.1,fd00::1")
        .sidecar(with(vec![ingress(
            9080,
            "192.0.2.1",
            CaptureMode::Default,
            "127.0.0.1:8080",
        )]))
        .compile();
    for dst in ["10.0.0.1:9080", "192.0.2.9:9080"] {
        node.inbound("10.0.0.9", dst)
            .direct(Reason::IngressListener, &["127.0.0.1:8080"]);
    }
    // A socket takes no connections of the other family.
    node.inbound("fd00::9", "[fd00::1]:9080").is(
        Path::Relay,
        Reason::IngressListener,
        &["127.0.0.1:8080"],
    );
    node.inbound("10.0.0.1", "10.0.0.1:9080")
        .passes(Reason::SelfCall);
    node.inbound("127.0.0.1", "127.0.0.1:9080")
        .passes(Reason::SelfCall);
    node.inbound("10.0.0.9", "10.0.0.1:8080")
        .passes(Reason::UndeclaredPort);
    assert_eq!(node.plan().listen_ports, [8080].into());
}

#[test]
fn on_the_hosts_namespace_only_declared_addresses_are_captured() {
    let sidecar = with(vec![ingress(
        9080,
        "",
        CaptureMode::Default,
        "127.0.0.1:8080",
    )]);
    let node = Node::new("10.0.0.1")
        .on_host()
        .sidecar(sidecar.clone())
        .compile();
    node.inbound("10.0.0.9", "10.0.0.1:9080")
        .direct(Reason::IngressListener, &["127.0.0.1:8080"]);
    node.inbound("10.0.0.9", "10.0.0.2:9080")
        .passes(Reason::UndeclaredPort);
    let node = Node::new("").on_host().sidecar(sidecar).compile();
    assert!(node.plan().inbound.is_empty());
    assert_eq!(node.kinds(), [FindingKind::Unreachable]);
}

#[test]
fn a_real_listener_sits_on_the_first_address() {
    let node = Node::new("169.254.0.1,10.0.0.1,10.0.0.2")
        .sidecar(with(vec![ingress(
            9080,
            "",
            CaptureMode::None,
            "0.0.0.0:8080",
        )]))
        .compile();
    node.inbound("10.0.0.9", "10.0.0.1:9080")
        .direct(Reason::IngressListener, &["169.254.0.1:8080"]);
    node.inbound("10.0.0.1", "10.0.0.1:9080")
        .direct(Reason::IngressListener, &["169.254.0.1:8080"]);
    node.inbound("10.0.0.9", "10.0.0.2:9080")
        .passes(Reason::UndeclaredPort);
}

#[test]
fn without_an_endpoint_connections_pass() {
    let node = Node::new("10.0.0.1")
        .sidecar(with(vec![ingress(9080, "", CaptureMode::Default, "")]))
        .compile();
    node.inbound("10.0.0.9", "10.0.0.1:9080")
        .passes(Reason::IngressListener);
}

#[test]
fn captured_where_nothing_is_captured_is_unreachable() {
    let node = Node::new("10.0.0.1")
        .annotate(MODE, "NONE")
        .sidecar(with(vec![
            ingress(9080, "", CaptureMode::Iptables, "127.0.0.1:8080"),
            ingress(9081, "", CaptureMode::Default, "127.0.0.1:8081"),
        ]))
        .compile();
    node.inbound("10.0.0.9", "10.0.0.1:9080")
        .passes(Reason::InterceptionNone);
    node.inbound("10.0.0.9", "10.0.0.1:9081")
        .direct(Reason::IngressListener, &["127.0.0.1:8081"]);
    assert_eq!(node.kinds(), [FindingKind::Unreachable]);
    assert_eq!(node.node.findings[0].field, "spec.ingress[0]");
}

#[test]
fn excluded_ports_are_not_captured() {
    let sidecar = with(vec![
        ingress(9080, "", CaptureMode::Default, "127.0.0.1:8080"),
        ingress(9081, "", CaptureMode::None, "127.0.0.1:8081"),
    ]);
    let node = Node::new("10.0.0.1")
        .annotate(EXCLUDE_INBOUND, "9080,9081")
        .sidecar(sidecar.clone())
        .compile();
    node.inbound("10.0.0.9", "10.0.0.1:9080")
        .passes(Reason::ExcludedPort);
    node.inbound("10.0.0.9", "10.0.0.1:9081")
        .direct(Reason::IngressListener, &["127.0.0.1:8081"]);
    assert_eq!(node.kinds(), [FindingKind::Unreachable]);
    // A declared listener counts as included.
    let node = Node::new("10.0.0.1")
        .annotate(INCLUDE_INBOUND, "1")
        .sidecar(sidecar)
        .compile();
    node.inbound("10.0.0.9", "10.0.0.1:9080")
        .direct(Reason::IngressListener, &["127.0.0.1:8080"]);
}

#[test]
fn service_ports_go_to_localhost_where_the_mesh_says_so() {
    let mut node = Node::new("10.0.0.1").service(NS, "productpage", "10.96.0.1", &["http:80:8080"]);
    node.compile()
        .inbound("10.0.0.9", "10.0.0.1:8080")
        .passes(Reason::UndeclaredPort);
    node.snapshot.mesh.inbound_localhost = true;
    let compiled = node.compile();
    compiled
        .inbound("10.0.0.9", "10.0.0.1:8080")
        .direct(Reason::IngressListener, &["127.0.0.1:8080"]);
    compiled
        .inbound("10.0.0.9", "10.0.0.1:80")
        .passes(Reason::UndeclaredPort);
}
