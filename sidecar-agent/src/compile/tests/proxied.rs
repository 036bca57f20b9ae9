use super::*;
use crate::{explain::Who, model::settings::DUAL_STACK};

fn proxy(outcome: &Outcome, reason: Reason, target: &str) {
    outcome.is(Path::Proxy, reason, &[target]);
}

#[test]
fn everything_goes_to_the_proxy() {
    let node = Node::new("10.0.0.1,fd00::1")
        .proxied()
        .annotate(DUAL_STACK.annotation, "true")
        .service(NS, "a", "10.96.0.1", &["http:80"])
        .compile();
    proxy(
        &node.out("10.96.0.1:80"),
        Reason::CaptureAll,
        "127.0.0.1:15001",
    );
    proxy(
        &node.out("[2001:db8::1]:80"),
        Reason::CaptureAll,
        "[::1]:15001",
    );
    node.out("127.0.0.1:15001").passes(Reason::Loopback);
    node.out("127.0.0.2:80").passes(Reason::Loopback);
    node.out("10.0.0.1:80").passes(Reason::SelfCall);
    proxy(
        &node.inbound("10.0.0.9", "10.0.0.1:22"),
        Reason::CaptureAll,
        "127.0.0.1:15006",
    );
    proxy(
        &node.inbound("fd00::9", "[fd00::1]:80"),
        Reason::CaptureAll,
        "[::1]:15006",
    );
    node.inbound("10.0.0.1", "10.0.0.1:80")
        .passes(Reason::SelfCall);
    for port in [15008, 15020, 15021, 15090] {
        node.inbound("10.0.0.9", &format!("10.0.0.1:{port}"))
            .passes(Reason::ExcludedPort);
    }
    assert_eq!(node.plan().listen_ports, [15001, 15006].into());
    assert!(node.plan().outbound.exact.is_empty() && node.plan().outbound.prefixes.is_empty());
}

#[test]
fn listeners_of_the_sidecar() {
    let node = Node::new("10.0.0.1")
        .proxied()
        .service(NS, "a", "10.96.0.1", &["tcp:3306"])
        .sidecar(Sidecar {
            ingress: vec![
                ingress(80, "10.0.0.1", CaptureMode::None, "127.0.0.1:8080"),
                ingress(81, "", CaptureMode::None, "127.0.0.1:8080"),
                ingress(82, "", CaptureMode::Default, "127.0.0.1:8080"),
                ingress(15021, "", CaptureMode::Default, "127.0.0.1:8080"),
            ],
            egress: vec![egress(
                Some(port(3306, "TCP")),
                "",
                CaptureMode::None,
                &["*/*"],
            )],
            ..Sidecar::default()
        })
        .compile();
    node.inbound("10.0.0.9", "10.0.0.1:80")
        .passes(Reason::NoneListener);
    proxy(
        &node.inbound("10.0.0.9", "10.0.0.2:80"),
        Reason::CaptureAll,
        "127.0.0.1:15006",
    );
    node.inbound("10.0.0.9", "10.0.0.2:81")
        .passes(Reason::NoneListener);
    let declared = node.inbound("10.0.0.9", "10.0.0.1:82");
    proxy(&declared, Reason::IngressListener, "127.0.0.1:15006");
    assert_eq!(declared.0.listener.as_deref(), Some("ingress *:82"));
    node.inbound("10.0.0.9", "10.0.0.1:15021")
        .passes(Reason::ExcludedPort);
    proxy(
        &node.inbound("10.0.0.9", "10.0.0.1:83"),
        Reason::CaptureAll,
        "127.0.0.1:15006",
    );
    let real = node.out("127.0.0.1:3306");
    real.passes(Reason::NoneListener);
    assert_eq!(real.0.listener.as_deref(), Some("egress 127.0.0.1:3306"));
}

#[test]
fn lists() {
    let node = Node::new("fd00::1,10.0.0.1")
        .proxied()
        .annotate(INCLUDE_INBOUND, "8080,15008")
        .annotate(EXCLUDE_INBOUND, "8080")
        .annotate(INCLUDE_RANGES, "10.96.0.0/12")
        .annotate(EXCLUDE_RANGES, "10.96.5.0/24")
        .annotate(INCLUDE_PORTS, "8443")
        .annotate(EXCLUDE_PORTS, "3306")
        .compile();
    proxy(
        &node.inbound("10.0.0.9", "10.0.0.1:8080"),
        Reason::IncludedPort,
        "127.0.0.1:15006",
    );
    node.inbound("10.0.0.9", "10.0.0.1:9090")
        .passes(Reason::NotIncluded);
    node.inbound("10.0.0.9", "10.0.0.1:15008")
        .passes(Reason::ExcludedPort);
    proxy(
        &node.out("10.96.0.1:80"),
        Reason::IncludedRange,
        "127.0.0.1:15001",
    );
    node.out("10.96.5.1:80").passes(Reason::ExcludedRange);
    node.out("10.96.5.1:8443").passes(Reason::ExcludedRange);
    proxy(
        &node.out("8.8.8.8:8443"),
        Reason::IncludedPort,
        "127.0.0.1:15001",
    );
    proxy(
        &node.out("[2001:db8::1]:8443"),
        Reason::IncludedPort,
        "[::1]:15001",
    );
    node.out("8.8.8.8:80").passes(Reason::NotIncluded);
    node.out("10.96.0.1:3306").passes(Reason::ExcludedPort);
}

#[test]
fn captured_loopback_networks() {
    let node = Node::new("10.0.0.1")
        .proxied()
        .annotate(INCLUDE_RANGES, "127.0.0.0/8,10.0.0.0/8")
        .compile();
    proxy(
        &node.out("127.1.2.3:80"),
        Reason::IncludedRange,
        "127.0.0.1:15001",
    );
    proxy(
        &node.out("10.0.0.1:80"),
        Reason::IncludedRange,
        "127.0.0.1:15001",
    );
    node.out("127.0.0.1:80").passes(Reason::Loopback);
}

#[test]
fn interception_none_captures_nothing() {
    let node = Node::new("10.0.0.1")
        .proxied()
        .annotate(MODE, "NONE")
        .compile();
    node.out("10.96.0.1:80").passes(Reason::InterceptionNone);
    node.inbound("10.0.0.9", "10.0.0.1:80")
        .passes(Reason::InterceptionNone);
    assert!(node.plan().listen_ports.is_empty());
}

#[test]
fn the_hosts_namespace_is_not_captured_whole() {
    let node = Node::new("10.0.0.1")
        .on_host()
        .proxied()
        .sidecar(Sidecar {
            ingress: vec![ingress(80, "", CaptureMode::Default, "127.0.0.1:8080")],
            ..Sidecar::default()
        })
        .compile();
    proxy(
        &node.inbound("10.0.0.9", "10.0.0.1:80"),
        Reason::IngressListener,
        "127.0.0.1:15006",
    );
    node.inbound("10.0.0.9", "10.0.0.2:80")
        .passes(Reason::NotIncluded);
    node.inbound("10.0.0.9", "10.0.0.1:22")
        .passes(Reason::NotIncluded);
    assert_eq!(node.kinds(), [FindingKind::Unreachable]);
}

/// There, the list of included ports has rules for the workload's very addresses.
#[test]
fn an_included_port_does_not_take_what_a_real_listener_has_on_the_host() {
    let node = Node::new("10.0.0.1")
        .on_host()
        .proxied()
        .annotate("traffic.sidecar.istio.io/includeInboundPorts", "80,81")
        .sidecar(Sidecar {
            ingress: vec![ingress(80, "", CaptureMode::None, "127.0.0.1:8080")],
            ..Sidecar::default()
        })
        .compile();
    node.inbound("10.0.0.9", "10.0.0.1:80")
        .passes(Reason::NoneListener);
    proxy(
        &node.inbound("10.0.0.9", "10.0.0.1:81"),
        Reason::IncludedPort,
        "127.0.0.1:15006",
    );
}

#[test]
fn the_proxys_own_connections_pass() {
    let node = Node::new("10.0.0.1").proxied().compile();
    let connection = Connection {
        caller: Who::Proxy,
        ..Connection::outbound("10.96.0.1:80".parse().unwrap())
    };
    let explanation = explain(node.plan(), &[], &connection);
    assert_eq!(
        (explanation.path, explanation.reason),
        (Path::Pass, Reason::ProxyOwn)
    );
}
