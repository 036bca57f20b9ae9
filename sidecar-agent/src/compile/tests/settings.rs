//! Who calls, and by which way.

use sidecar_common::{
    decide::Transport,
    keys::OwnerKey,
    values::{Interface, PlanHeader},
};

use super::*;
use crate::{
    explain::Who,
    model::settings::{
        ACCELERATE, DNS_CAPTURE, DNS_SERVERS, DUAL_STACK, EXCLUDE_INTERFACES,
        EXCLUDE_OUTBOUND_PORTS, EXCLUDE_OUTBOUND_RANGES, INCLUDE_OUTBOUND_PORTS,
        INCLUDE_OUTBOUND_RANGES, INTERCEPTION_MODE, KUBEVIRT_INTERFACES, LOOPBACK_CIDR,
        OWNER_GROUPS, OWNER_GROUPS_EXCLUDE, PROXY_GID, PROXY_UID, Setting, TUNNEL_PORT,
        VIRTUAL_INTERFACES,
    },
};

fn proxied(settings: &[(&Setting, &str)]) -> Compiled {
    annotated(Node::new("10.0.0.1,fd00::1").proxied(), settings).compile()
}

fn direct(settings: &[(&Setting, &str)]) -> Compiled {
    annotated(Node::new("10.0.0.1,fd00::1"), settings).compile()
}

fn annotated(node: Node, settings: &[(&Setting, &str)]) -> Node {
    settings.iter().fold(node, |node, (setting, value)| {
        node.annotate(setting.annotation, value)
    })
}

impl Compiled {
    fn by(&self, uid: u32, gid: u32, dst: &str) -> Outcome {
        self.ask(&Connection {
            caller: Who::Ids {
                uid: Some(uid),
                gid: Some(gid),
            },
            ..Connection::outbound(dst.parse().unwrap())
        })
    }

    fn datagram(&self, dst: &str) -> Outcome {
        self.ask(&Connection {
            transport: Transport::Udp,
            ..Connection::outbound(dst.parse().unwrap())
        })
    }

    fn leaving_by(&self, interface: &str, dst: &str) -> Outcome {
        self.ask(&Connection {
            interface: Some(interface),
            ..Connection::outbound(dst.parse().unwrap())
        })
    }

    fn arriving_by(&self, interface: &str, dst: &str) -> Outcome {
        self.ask(&Connection {
            interface: Some(interface),
            ..Connection::inbound(Some([10, 0, 0, 9].into()), dst.parse().unwrap())
        })
    }
}

#[track_caller]
fn to(outcome: &Outcome, reason: Reason, target: &str) {
    outcome.is(Path::Proxy, reason, &[target]);
}

const OUTBOUND: &str = "127.0.0.1:15001";
const INBOUND: &str = "127.0.0.1:15006";
const DNS: &str = "127.0.0.1:15053";

#[test]
fn the_header_of_a_proxied_workload() {
    let plan = proxied(&[
        (&PROXY_UID, "7,8"),
        (&PROXY_GID, "9"),
        (&LOOPBACK_CIDR, "127.0.0.1/8"),
        (&TUNNEL_PORT, "16008"),
        (&DNS_CAPTURE, "true"),
        (&OWNER_GROUPS, "5"),
        (&EXCLUDE_INTERFACES, "eth1,l+"),
        (&VIRTUAL_INTERFACES, "eth1"),
        (&INCLUDE_OUTBOUND_RANGES, "10.0.0.0/8"),
        (&INTERCEPTION_MODE, "TPROXY"),
    ]);
    let header = plan.plan().header;
    assert_eq!((header.proxy_uid, header.proxy_gid), (7, 9));
    assert_eq!((header.tunnel_port, header.dns_port), (16008, 15053));
    // In network order.
    assert_eq!(header.loopback.to_ne_bytes(), [127, 0, 0, 0]);
    assert_eq!(header.loopback_mask.to_ne_bytes(), [255, 0, 0, 0]);
    assert_eq!(
        header.flags,
        PlanHeader::PROXIED
            | PlanHeader::TPROXY
            | PlanHeader::ONLY_GROUPS
            | PlanHeader::EXCLUDED_INTERFACES
            | PlanHeader::EXCLUDED_LOOPBACK
            | PlanHeader::VIRTUAL_INTERFACES
    );
    assert_eq!(
        header.tables & (PlanHeader::HAS_PROXY_UIDS | PlanHeader::HAS_PROXY_GIDS),
        PlanHeader::HAS_PROXY_UIDS
    );
    assert_eq!(
        plan.plan().owners,
        [(OwnerKey::PROXY_UID, 8), (OwnerKey::GROUP, 5)].into()
    );
    assert_eq!(
        plan.plan().interface("eth1"),
        Interface::EXCLUDED | Interface::VIRTUAL
    );
    assert_eq!(plan.plan().interface("lo"), Interface::EXCLUDED);
    assert_eq!(plan.plan().interface("eth10"), 0);
    let size = plan.plan().size();
    assert_eq!((size.owners, size.interfaces), (2, 2));
    // That of the included range, of port 53, and of the virtual interface.
    assert_eq!(size.outbound_prefixes, 1 + 2 + 1);
}

#[test]
fn acceleration_is_for_a_proxy_that_is_called() {
    let is_accelerated =
        |compiled: &Compiled| compiled.plan().header.flags & PlanHeader::ACCELERATE != 0;
    let asked = (&ACCELERATE, "true");
    assert!(is_accelerated(&proxied(&[asked])));
    for not in [
        proxied(&[]),
        proxied(&[(&ACCELERATE, "false")]),
        proxied(&[asked, (&INTERCEPTION_MODE, "TPROXY")]),
        proxied(&[asked, (&INTERCEPTION_MODE, "NONE")]),
        direct(&[asked]),
    ] {
        assert!(!is_accelerated(&not));
    }
}

#[test]
fn where_nothing_is_captured_nothing_else_matters() {
    let settings = [
        (&OWNER_GROUPS, "5"),
        (&EXCLUDE_INTERFACES, "eth1"),
        (&DNS_CAPTURE, "true"),
        (&INTERCEPTION_MODE, "NONE"),
    ];
    for compiled in [proxied(&settings), direct(&settings)] {
        let plan = compiled.plan();
        assert_eq!((plan.header.flags, plan.header.dns_port), (0, 0));
        assert!(plan.owners.is_empty() && plan.interfaces.is_empty());
        compiled.out("8.8.8.8:53").passes(Reason::InterceptionNone);
    }
}

#[test]
fn dns() {
    let all = proxied(&[
        (&DNS_CAPTURE, "true"),
        (&INCLUDE_OUTBOUND_RANGES, ""),
        (&INCLUDE_OUTBOUND_PORTS, "53"),
        (&EXCLUDE_OUTBOUND_RANGES, "8.8.8.8/32"),
        (&DUAL_STACK, "true"),
    ]);
    for dst in ["8.8.8.8:53", "1.1.1.1:53", "127.0.0.53:53", "10.0.0.1:53"] {
        to(&all.datagram(dst), Reason::Dns, DNS);
        to(&all.out(dst), Reason::Dns, DNS);
    }
    to(&all.datagram("[fd00::9]:53"), Reason::Dns, "[::1]:15053");
    all.datagram("8.8.8.8:54").passes(Reason::NotIncluded);
    all.by(1337, 0, "8.8.8.8:53").passes(Reason::ProxyOwn);

    let servers = proxied(&[
        (&DNS_CAPTURE, "true"),
        (&DNS_SERVERS, "10.96.0.10"),
        (&EXCLUDE_OUTBOUND_RANGES, "10.96.0.0/16"),
    ]);
    to(&servers.datagram("10.96.0.10:53"), Reason::Dns, DNS);
    to(&servers.out("10.96.0.10:53"), Reason::Dns, DNS);
    servers.datagram("8.8.8.8:53").passes(Reason::NotIncluded);
    to(&servers.out("8.8.8.8:53"), Reason::CaptureAll, OUTBOUND);
    servers.out("10.96.0.11:53").passes(Reason::ExcludedRange);

    for servers in ["", "10.96.0.10"] {
        let excluded = proxied(&[
            (&DNS_CAPTURE, "true"),
            (&DNS_SERVERS, servers),
            (&EXCLUDE_OUTBOUND_PORTS, "53"),
        ]);
        excluded.out("10.96.0.10:53").passes(Reason::ExcludedPort);
        let datagram = excluded.datagram("10.96.0.10:53");
        datagram.passes(Reason::ExcludedPort);
    }
    let nobody = direct(&[(&DNS_CAPTURE, "true")]);
    nobody.datagram("8.8.8.8:53").passes(Reason::NotIncluded);
    nobody.out("8.8.8.8:53").passes(Reason::AllowAny);
}

#[test]
fn calls_of_a_workload_to_itself() {
    let node = proxied(&[(&PROXY_UID, "3,4"), (&PROXY_GID, "1")]);
    to(
        &node.by(3, 9, "10.0.0.1:80"),
        Reason::ProxySelfCall,
        INBOUND,
    );
    to(
        &node.by(3, 9, "127.0.0.2:80"),
        Reason::ProxySelfCall,
        INBOUND,
    );
    node.by(3, 9, "127.0.0.1:80").passes(Reason::ProxyOwn);
    node.by(3, 9, "10.0.0.1:15008").passes(Reason::ProxyOwn);
    // Only the first one's.
    node.by(4, 1, "10.0.0.1:80").passes(Reason::SelfCall);
    node.by(9, 9, "10.0.0.1:80").passes(Reason::SelfCall);
    node.by(4, 9, "8.8.8.8:80").passes(Reason::ProxyOwn);
    node.by(9, 1, "8.8.8.8:80").passes(Reason::ProxyOwn);
    let passthrough = Connection {
        src: Some([127, 0, 0, 6].into()),
        ..Connection::outbound("10.0.0.1:80".parse().unwrap())
    };
    node.ask(&passthrough).passes(Reason::Passthrough);

    let transparent = proxied(&[(&INTERCEPTION_MODE, "TPROXY")]);
    to(
        &transparent.by(0, 1337, "10.0.0.1:15008"),
        Reason::ProxySelfCall,
        INBOUND,
    );
    let excluded = transparent.by(0, 1337, "10.0.0.1:15020");
    excluded.passes(Reason::SelfCall);
}

#[test]
fn a_none_listener_of_a_transparent_proxy_is_not_captured() {
    let node = Node::new("10.0.0.1")
        .proxied()
        .annotate(MODE, "TPROXY")
        .service(NS, "a", "10.96.0.1", &["tcp:3306"])
        .sidecar(Sidecar {
            egress: vec![egress(
                Some(port(3306, "TCP")),
                "10.0.0.1",
                CaptureMode::None,
                &["*/*"],
            )],
            ..Sidecar::default()
        })
        .compile();
    let called = node.by(1337, 1337, "10.0.0.1:3306");
    called.passes(Reason::NoneListener);
    to(
        &node.by(0, 1337, "10.0.0.1:3307"),
        Reason::ProxySelfCall,
        INBOUND,
    );
}

#[test]
fn groups_and_interfaces_matter_without_a_proxy() {
    let node = |settings: &[(&Setting, &str)]| {
        let node = Node::new("10.0.0.1")
            .service(NS, "a", "10.96.0.1", &["tcp:3306"])
            .endpoint(NS, "a", "10.0.0.7")
            .sidecar(Sidecar {
                ingress: vec![
                    ingress(9080, "", CaptureMode::Default, "127.0.0.1:8080"),
                    ingress(9081, "", CaptureMode::None, "127.0.0.1:8080"),
                ],
                egress: vec![
                    egress(
                        Some(port(3306, "TCP")),
                        "127.0.0.1",
                        CaptureMode::None,
                        &["*/*"],
                    ),
                    egress(None, "", CaptureMode::Default, &["*/*"]),
                ],
                ..Sidecar::default()
            });
        annotated(node, settings).compile()
    };
    let groups = node(&[(&OWNER_GROUPS_EXCLUDE, "5")]);
    let called = |gid| groups.by(9, gid, "10.96.0.1:3306");
    called(5).passes(Reason::OwnerGroup);
    called(6).direct(Reason::EgressService, &["10.0.0.7:3306"]);
    // A real listener is there for everybody.
    let real = groups.by(9, 5, "127.0.0.1:3306");
    real.direct(Reason::EgressListener, &["10.0.0.7:3306"]);

    let interfaces = node(&[(&EXCLUDE_INTERFACES, "eth1,lo")]);
    let excluded = interfaces.leaving_by("eth1", "10.96.0.1:3306");
    excluded.passes(Reason::ExcludedInterface);
    let real = interfaces.out("127.0.0.1:3306");
    real.direct(Reason::EgressListener, &["10.0.0.7:3306"]);
    let excluded = interfaces.arriving_by("eth1", "10.0.0.1:9080");
    excluded.passes(Reason::ExcludedInterface);
    let captured = interfaces.arriving_by("eth0", "10.0.0.1:9080");
    captured.direct(Reason::IngressListener, &["127.0.0.1:8080"]);
    let real = interfaces.arriving_by("eth1", "10.0.0.1:9081");
    real.direct(Reason::IngressListener, &["127.0.0.1:8080"]);
}

#[test]
fn virtual_interfaces() {
    let all = proxied(&[
        (&VIRTUAL_INTERFACES, "net1"),
        (&EXCLUDE_OUTBOUND_RANGES, "8.8.8.8/32"),
    ]);
    let arriving = all.arriving_by("net1", "8.8.8.8:80");
    to(&arriving, Reason::VirtualInterface, OUTBOUND);
    let arriving = all.arriving_by("net1", "[2001:db8::1]:80");
    arriving.passes(Reason::VirtualInterface);
    to(
        &all.arriving_by("eth0", "10.0.0.1:80"),
        Reason::CaptureAll,
        INBOUND,
    );
    let some = proxied(&[
        (&KUBEVIRT_INTERFACES, "net1"),
        (&INCLUDE_OUTBOUND_RANGES, "10.96.0.0/16,::/0"),
        (&DUAL_STACK, "true"),
    ]);
    let arriving = some.arriving_by("net1", "10.96.0.1:80");
    to(&arriving, Reason::VirtualInterface, OUTBOUND);
    let arriving = some.arriving_by("net1", "[2001:db8::1]:80");
    to(&arriving, Reason::VirtualInterface, "[::1]:15001");
    // Not by the range of all IPv6 addresses.
    let arriving = some.arriving_by("net1", "8.8.8.8:80");
    arriving.passes(Reason::VirtualInterface);
}

#[test]
fn workloads_that_differ_in_who_calls_share_the_outbound_half() {
    let settings: [&[(&Setting, &str)]; 9] = [
        &[],
        &[(&PROXY_UID, "5")],
        &[(&PROXY_GID, "5,6")],
        &[(&OWNER_GROUPS, "5")],
        &[(&OWNER_GROUPS_EXCLUDE, "5")],
        &[(&LOOPBACK_CIDR, "127.0.0.0/8")],
        &[(&EXCLUDE_INTERFACES, "eth1")],
        &[(&VIRTUAL_INTERFACES, "eth1")],
        &[(&DUAL_STACK, "true")],
    ];
    let mut snapshot = Snapshot::default();
    for (index, settings) in settings.iter().enumerate() {
        let node = annotated(Node::new("10.0.0.1,fd00::1").proxied(), settings)
            .annotate(CGROUP_ANNOTATION, &index.to_string());
        snapshot.workloads.extend(node.snapshot.workloads);
    }
    let workloads = plans(&snapshot).workloads;
    let first = &workloads[0].plan.outbound;
    assert!(
        workloads
            .iter()
            .all(|known| Arc::ptr_eq(&known.plan.outbound, first))
    );
    let mut digests: Vec<_> = workloads
        .iter()
        .map(|known| known.digest.to_hex())
        .collect();
    digests.sort();
    digests.dedup();
    assert_eq!(digests.len(), settings.len());
}
