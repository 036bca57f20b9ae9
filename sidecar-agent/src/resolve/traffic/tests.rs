use super::*;
use crate::model::{
    mesh::ProxyConfig,
    settings::{
        self as names, EXCLUDE_OUTBOUND_PORTS, EXCLUDE_OUTBOUND_RANGES, INCLUDE_INBOUND_PORTS,
        INCLUDE_OUTBOUND_PORTS, INCLUDE_OUTBOUND_RANGES, INTERCEPTION_MODE, PROXY_UID, STATUS_PORT,
        Setting,
    },
    workload::PROXY_CONFIG_ANNOTATION,
};

fn settings(written: &[(&Setting, &str)], own: &str, mesh: &ProxyConfig) -> Settings {
    let own = (!own.is_empty()).then(|| (PROXY_CONFIG_ANNOTATION.to_owned(), own.to_owned()));
    let annotations = written
        .iter()
        .map(|(setting, value)| (setting.annotation.to_owned(), (*value).to_owned()))
        .chain(own)
        .collect();
    Traffic::read(&annotations, mesh)
}

fn read(written: &[(&Setting, &str)]) -> (Traffic, Vec<Problem>) {
    let Settings {
        traffic, problems, ..
    } = settings(written, "", &ProxyConfig::default());
    (traffic, problems)
}

/// Without anything wrong.
fn good(written: &[(&Setting, &str)]) -> Traffic {
    let (traffic, problems) = read(written);
    assert_eq!(problems, [], "{written:?}");
    traffic
}

fn metadata(pairs: &[(&str, &str)]) -> ProxyConfig {
    ProxyConfig {
        proxy_metadata: pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        ..ProxyConfig::default()
    }
}

#[test]
fn defaults_are_those_of_the_injector() {
    let traffic = good(&[]);
    assert_eq!(
        traffic,
        Traffic {
            exclude_inbound: [15020, 15021, 15090].into(),
            ..Traffic::default()
        }
    );
    assert_eq!(traffic.proxy_uids, [1337]);
    assert_eq!(traffic.proxy_gids, [1337]);
    assert_eq!(traffic.inbound(15008), Err(Reason::ExcludedPort));
    assert_eq!(traffic.inbound(22), Ok(Reason::CaptureAll));
    let traffic = good(&[(&STATUS_PORT, "0"), (&INTERCEPTION_MODE, "TPROXY")]);
    assert_eq!(traffic.exclude_inbound, [15021, 15090].into());
    assert_eq!(traffic.inbound(15008), Ok(Reason::CaptureAll));
    let traffic = good(&[(&names::TUNNEL_PORT, "16008")]);
    assert_eq!(traffic.inbound(15008), Ok(Reason::CaptureAll));
    assert_eq!(traffic.inbound(16008), Err(Reason::ExcludedPort));
}

#[test]
fn an_empty_list_is_not_an_absent_one() {
    let traffic = good(&[
        (&INCLUDE_OUTBOUND_RANGES, ""),
        (&INCLUDE_INBOUND_PORTS, ""),
        (&names::OWNER_GROUPS, ""),
    ]);
    assert_eq!(
        traffic.outbound([10, 0, 0, 1].into(), 80),
        Err(Reason::NotIncluded)
    );
    assert_eq!(traffic.inbound(80), Err(Reason::NotIncluded));
    assert_eq!(traffic.owner_groups, OwnerGroups::Only([].into()));
}

#[test]
fn outbound_order() {
    let traffic = good(&[
        (&INCLUDE_OUTBOUND_RANGES, "10.96.0.0/12, ,192.168.7.9/16,"),
        (&EXCLUDE_OUTBOUND_RANGES, "10.96.5.0/24"),
        (&INCLUDE_OUTBOUND_PORTS, "8443,9443"),
        (&EXCLUDE_OUTBOUND_PORTS, "9443"),
    ]);
    let outbound = |ip: [u8; 4], port| traffic.outbound(ip.into(), port);
    assert_eq!(outbound([10, 96, 0, 1], 80), Ok(Reason::IncludedRange));
    assert_eq!(outbound([192, 168, 0, 1], 80), Ok(Reason::IncludedRange));
    assert_eq!(outbound([10, 96, 5, 1], 8443), Err(Reason::ExcludedRange));
    assert_eq!(outbound([1, 1, 1, 1], 8443), Ok(Reason::IncludedPort));
    assert_eq!(outbound([10, 96, 0, 1], 9443), Err(Reason::ExcludedPort));
    assert_eq!(outbound([1, 1, 1, 1], 80), Err(Reason::NotIncluded));
}

#[test]
fn bad_values_are_named_and_the_rest_holds() {
    let (traffic, problems) = read(&[
        (&EXCLUDE_OUTBOUND_PORTS, "80,x,70000,81-82,+83"),
        (&EXCLUDE_OUTBOUND_RANGES, "*,10.0.0.0/8"),
        (&INTERCEPTION_MODE, "redirect"),
        (&PROXY_UID, "7,-1,8,7"),
        (&names::EXCLUDE_INTERFACES, "eth1, net/0"),
        (&names::LOOPBACK_CIDR, "::1/128"),
        (&names::DUAL_STACK, "yes"),
    ]);
    let values: Vec<_> = problems.iter().map(|bad| bad.value.as_str()).collect();
    assert_eq!(
        values,
        [
            "redirect", "-1", "*", "x", "70000", "81-82", "+83", "net/0", "::1/128", "yes"
        ]
    );
    assert!(problems.iter().all(|problem| !problem.without_effect));
    assert_eq!(traffic.exclude_outbound, [80].into());
    assert_eq!(traffic.exclude_ranges.len(), 1);
    assert_eq!(traffic.mode, InterceptionMode::Redirect);
    assert_eq!(traffic.proxy_uids, [7, 8]);
    assert_eq!(traffic.proxy_gids, [7, 8]);
    assert_eq!(traffic.exclude_interfaces, ["eth1".to_owned()].into());
    assert_eq!(traffic.loopback, DEFAULT_LOOPBACK);
}

#[test]
fn empty_texts_are_tolerated() {
    let traffic = good(&[
        (&PROXY_UID, ""),
        (&names::PROXY_GID, " , "),
        (&INTERCEPTION_MODE, ""),
        (&STATUS_PORT, ""),
        (&names::LOOPBACK_CIDR, ""),
        (&names::DNS_CAPTURE, ""),
        (&names::DNS_SERVERS, ","),
        (&names::VIRTUAL_INTERFACES, ""),
        (&names::TUNNEL_PORT, ""),
    ]);
    assert_eq!(traffic, good(&[]));
}

#[test]
fn the_strongest_place_decides() {
    let mesh = ProxyConfig {
        interception_mode: Some(InterceptionMode::None),
        status_port: Some(1),
        ..metadata(&[
            ("ISTIO_META_DNS_CAPTURE", "true"),
            ("ISTIO_OUTBOUND_OWNER_GROUPS", "1"),
            ("INVALID_DROP", "1"),
            ("SIDECAR_AGENT_ACCELERATE", "true"),
            ("INBOUND_TUNNEL_PORT", "3"),
            ("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", "127.0.0.1/8"),
        ])
    };
    let own = "
interceptionMode: TPROXY
statusPort: 2
proxyMetadata:
  ISTIO_OUTBOUND_OWNER_GROUPS: '2'
  ISTIO_DUAL_STACK: 'true'
  ISTIO_META_DNS_CAPTURE: 'false'
";
    let by_annotation = [(&STATUS_PORT, "4"), (&names::DNS_CAPTURE, "TRUE")];
    let Settings {
        traffic,
        origins,
        problems,
    } = settings(&by_annotation, own, &mesh);
    assert_eq!(problems, []);
    assert_eq!(traffic.mode, InterceptionMode::Tproxy);
    assert_eq!(traffic.status_port, 4);
    assert_eq!(traffic.dns, Dns::All);
    assert_eq!(traffic.owner_groups, OwnerGroups::Only([2].into()));
    assert!(traffic.dual_stack && traffic.drop_invalid && traffic.accelerate);
    assert_eq!(traffic.tunnel_port, 3);
    assert_eq!(traffic.loopback, "127.0.0.0/8".parse().unwrap());
    for (setting, written) in [
        (&STATUS_PORT, Some(Written::Annotation)),
        (&names::DNS_CAPTURE, Some(Written::Annotation)),
        (&INTERCEPTION_MODE, Some(Written::ProxyConfig)),
        (&names::OWNER_GROUPS, Some(Written::ProxyConfig)),
        (&names::LOOPBACK_CIDR, Some(Written::Mesh)),
        (&PROXY_UID, None),
    ] {
        assert_eq!(origins.of(setting), written, "{setting:?}");
    }
    // What cannot be used leaves the word to the next place.
    let bad = [(&STATUS_PORT, "x"), (&INTERCEPTION_MODE, "x")];
    let Settings { traffic, .. } = settings(&bad, "", &mesh);
    assert_eq!(traffic.mode, InterceptionMode::None);
    assert_eq!(traffic.status_port, 1);
}

#[test]
fn a_proxy_config_that_cannot_be_used() {
    let fields = "{interceptionMode: [], statusPort: 70000, concurrency: 2, proxyMetadata: \
                  {ISTIO_DUAL_STACK: maybe, INVALID_DROP: true, ISTIO_META_DNS_CAPTURE: 'true'}}";
    let Settings {
        traffic, problems, ..
    } = settings(&[], fields, &ProxyConfig::default());
    let messages: Vec<_> = problems
        .iter()
        .filter_map(|problem| problem.message.split(':').next())
        .collect();
    assert_eq!(
        messages,
        [
            "interceptionMode",
            "statusPort",
            "proxyMetadata[INVALID_DROP]",
            "proxyMetadata[ISTIO_DUAL_STACK]"
        ]
    );
    assert!(
        problems
            .iter()
            .all(|problem| problem.annotation == PROXY_CONFIG_ANNOTATION)
    );
    assert_eq!(traffic.dns, Dns::All);
    assert!(!traffic.dual_stack && !traffic.drop_invalid);
    assert_eq!(traffic.status_port, 15020);
    for text in ["[", "- a", "text", "a: 1\n---\nb: 2\n"] {
        let Settings { problems, .. } = settings(&[], text, &ProxyConfig::default());
        assert_eq!(problems.len(), 1, "{text:?}: {problems:?}");
    }
}

#[test]
fn owner_groups() {
    let many: Vec<_> = (0..65).map(|group: u32| group.to_string()).collect();
    let (many, allowed) = (many.join(","), many[..64].join(","));
    let traffic = good(&[(&names::OWNER_GROUPS_EXCLUDE, "1, 2,,")]);
    assert_eq!(traffic.owner_groups, OwnerGroups::Except([1, 2].into()));
    let traffic = good(&[
        (&names::OWNER_GROUPS, "*"),
        (&names::OWNER_GROUPS_EXCLUDE, &allowed),
    ]);
    assert!(matches!(&traffic.owner_groups, OwnerGroups::Except(groups) if groups.len() == 64));
    let (traffic, problems) = read(&[
        (&names::OWNER_GROUPS, "1,root"),
        (&names::OWNER_GROUPS_EXCLUDE, "2"),
    ]);
    assert_eq!(traffic.owner_groups, OwnerGroups::Only([1].into()));
    let effects: Vec<_> = problems.iter().map(|found| found.without_effect).collect();
    assert_eq!(effects, [false, true], "{problems:?}");
    for setting in [&names::OWNER_GROUPS, &names::OWNER_GROUPS_EXCLUDE] {
        let (traffic, problems) = read(&[(setting, &many)]);
        assert_eq!(traffic.owner_groups, OwnerGroups::Except([].into()));
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].message.contains("65"), "{problems:?}");
    }
}

#[test]
fn dns() {
    use names::{DNS_CAPTURE, DNS_CAPTURE_ALL, DNS_SERVERS};
    let some = || Dns::Only(["10.96.0.10".parse().unwrap(), "fd00::a".parse().unwrap()].into());
    let servers = "10.96.0.10,fd00::a";
    for (written, expected) in [
        (&[(&DNS_CAPTURE, "true")][..], Dns::All),
        (&[(&DNS_SERVERS, servers)], Dns::Off),
        (&[(&DNS_CAPTURE, "true"), (&DNS_SERVERS, servers)], some()),
        (
            &[
                (&DNS_CAPTURE, "true"),
                (&DNS_SERVERS, servers),
                (&DNS_CAPTURE_ALL, "false"),
            ],
            some(),
        ),
        (
            &[
                (&DNS_CAPTURE, "true"),
                (&DNS_SERVERS, servers),
                (&DNS_CAPTURE_ALL, "true"),
            ],
            Dns::All,
        ),
    ] {
        assert_eq!(good(written).dns, expected, "{written:?}");
    }
    let (traffic, problems) = read(&[(&DNS_CAPTURE, "true"), (&DNS_CAPTURE_ALL, "false")]);
    assert_eq!(traffic.dns, Dns::Off);
    assert!(problems.len() == 1 && problems[0].without_effect);
    // More than was asked for is not captured because of a mistake.
    let (traffic, problems) = read(&[(&DNS_CAPTURE, "true"), (&DNS_SERVERS, "x")]);
    assert_eq!(traffic.dns, Dns::Off);
    assert_eq!(problems.len(), 2);
}

#[test]
fn virtual_interfaces() {
    use names::{KUBEVIRT_INTERFACES, VIRTUAL_INTERFACES};
    let of = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    let traffic = good(&[(&KUBEVIRT_INTERFACES, "net1,net2")]);
    assert_eq!(traffic.virtual_interfaces, of(&["net1", "net2"]));
    good(&[
        (&KUBEVIRT_INTERFACES, "net1,net2"),
        (&VIRTUAL_INTERFACES, "net2,net1"),
    ]);
    let (traffic, problems) = read(&[
        (&KUBEVIRT_INTERFACES, "net1"),
        (&VIRTUAL_INTERFACES, "net2"),
    ]);
    assert_eq!(traffic.virtual_interfaces, of(&["net2"]));
    assert!(problems.len() == 1 && problems[0].without_effect);
    assert_eq!(problems[0].annotation, KUBEVIRT_INTERFACES.annotation);
}

#[test]
fn which_addresses_turn_ipv6_on() {
    let (single, dual) = (good(&[]), good(&[(&names::DUAL_STACK, "true")]));
    for (addresses, first, any) in [
        (&[][..], false, false),
        (&["10.0.0.1"], false, false),
        (&["fd00::1"], true, true),
        (&["10.0.0.1", "fd00::1"], false, true),
        (&["fd00::1", "10.0.0.1"], true, true),
        (
            &["127.0.0.1", "169.254.1.1", "fe80::1", "::1", "fd00::1"],
            true,
            true,
        ),
        (&["fe80::1", "10.0.0.1"], false, false),
    ] {
        let addresses: Vec<IpAddr> = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        assert_eq!(single.captures_v6(&addresses), first, "{addresses:?}");
        assert_eq!(dual.captures_v6(&addresses), any, "{addresses:?}");
    }
}
