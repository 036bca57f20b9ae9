//! The tables decide as the order of the `istio-iptables` rules does.

use ipnet::IpNet;
use proptest::prelude::*;

use super::*;
use crate::{
    compile::MemTables,
    explain,
    model::mesh::ProxyConfig,
    resolve::traffic::{Settings, Traffic},
};

/// Few addresses and networks, so that they meet.
const NETS: [&str; 12] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.96.0.0/12",
    "10.96.5.0/24",
    "10.96.5.7/32",
    "192.168.0.0/16",
    "127.0.0.0/8",
    "127.1.2.3/32",
    "::/0",
    "fd00::/8",
    "fd00::7/128",
    "::1/128",
];
const DESTINATIONS: [&str; 9] = [
    "10.96.5.7",
    "10.96.5.8",
    "10.96.0.1",
    "10.1.1.1",
    "192.168.1.1",
    "8.8.8.8",
    "fd00::7",
    "fd00::8",
    "2001:db8::1",
];
const PORTS: [u16; 3] = [80, 3306, 8443];

fn list(of: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::sample::subsequence(of, 0..4).prop_map(|items| items.join(","))
}

fn ports() -> impl Strategy<Value = String> {
    prop::sample::subsequence(&PORTS[..], 0..3).prop_map(|ports| {
        ports
            .iter()
            .map(u16::to_string)
            .collect::<Vec<_>>()
            .join(",")
    })
}

/// Services with addresses, networks, and nothing.
fn services() -> impl Strategy<Value = Vec<(u16, Vec<IpNet>)>> {
    let nets = prop::sample::subsequence(&NETS[..], 0..3)
        .prop_map(|nets| nets.iter().map(|net| net.parse().unwrap()).collect());
    prop::collection::vec((prop::sample::select(&PORTS[..]), nets), 0..3)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn lists_win_over_services_in_the_order_of_the_rules(
        include in prop::option::of(list(&NETS)),
        exclude in list(&NETS),
        include_ports in ports(),
        exclude_ports in ports(),
        services in services(),
        proxied in any::<bool>(),
    ) {
        let mut node = Node::new("fd00:244::1,10.244.0.1")
            .annotate(EXCLUDE_RANGES, &exclude)
            .annotate(INCLUDE_PORTS, &include_ports)
            .annotate(EXCLUDE_PORTS, &exclude_ports);
        if let Some(include) = include {
            node = node.annotate(INCLUDE_RANGES, &include);
        }
        if proxied {
            node = node.proxied();
        }
        for (index, (port, addresses)) in services.iter().enumerate() {
            let mut spec = entry(&format!("s{index}.example.com"), *port, "TCP", Resolution::None);
            spec.addresses.clone_from(addresses);
            node = node.entry(&format!("s{index}"), spec);
        }
        let annotations = &node.snapshot.workloads[0].meta.annotations;
        let Settings { traffic, problems, .. } =
            Traffic::read(annotations, &ProxyConfig::default());
        prop_assert!(problems.is_empty());
        let compiled = node.compile();
        let tables = MemTables::new(compiled.plan(), &[]);
        for ip in DESTINATIONS {
            let ip: IpAddr = ip.parse().unwrap();
            for port in PORTS {
                let connection = Connection::outbound(SocketAddr::new(ip, port));
                let decision = explain::decide(compiled.plan(), &tables, &connection);
                let reason = Reason::from_number(decision.reason).unwrap();
                let served = services.iter().any(|(service_port, nets)| {
                    *service_port == port && (nets.is_empty() || nets.iter().any(|n| n.contains(&ip)))
                });
                let expected = match traffic.outbound(ip, port) {
                    Err(exempt) => (Path::Pass, exempt),
                    Ok(captured) if proxied => (Path::Proxy, captured),
                    Ok(_) if served => (Path::Direct, Reason::EgressService),
                    Ok(_) => (Path::Pass, Reason::AllowAny),
                };
                prop_assert_eq!((decision.path, reason), expected, "{}:{}", ip, port);
            }
        }
    }
}
