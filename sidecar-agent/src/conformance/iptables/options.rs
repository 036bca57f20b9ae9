//! A workload under an option set of `istio-iptables`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::{
    compile::{self, WorkloadPlan},
    model::{
        FailurePolicy, ResourceRef, Snapshot,
        mesh::{MeshConfig, ProxyConfig},
        settings::{
            self, DNS_CAPTURE, DNS_CAPTURE_ALL, DNS_SERVERS, DROP_INVALID, DUAL_STACK,
            EXCLUDE_INTERFACES, EXCLUDE_OUTBOUND_PORTS, EXCLUDE_OUTBOUND_RANGES,
            INCLUDE_INBOUND_PORTS, INCLUDE_OUTBOUND_PORTS, INCLUDE_OUTBOUND_RANGES,
            INTERCEPTION_MODE, LOOPBACK_CIDR, OWNER_GROUPS, OWNER_GROUPS_EXCLUDE, PROXY_GID,
            PROXY_UID, TUNNEL_PORT, VIRTUAL_INTERFACES,
        },
    },
    resolve::{
        Registry, ResolvedWorkload,
        traffic::{Settings, Traffic},
        workload::Proxy,
    },
};

use super::cases::OptionSet;

/// The pod's address in the cases.
const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 1, 5));
/// The pod's IPv6 address in the cases.
const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 5));

/// The workload with a proxy for which the options hold, and its plan. Exactly the options' inbound
/// ports are excluded: the injector, which adds others, is not part of them. What cannot be used is
/// left out; see [`problems`].
#[must_use]
pub fn workload(options: &OptionSet) -> WorkloadPlan {
    let Settings {
        traffic, origins, ..
    } = traffic(options);
    // Whether IPv6 is captured follows from the addresses.
    let addresses = match (options.enable_ipv6, options.dual_stack) {
        (true, false) => vec![V6, V4],
        (true, true) | (false, _) => vec![V4, V6],
    };
    let workload = ResolvedWorkload {
        namespace: "cases".into(),
        name: "pod".into(),
        resource: ResourceRef {
            kind: "WorkloadEntry",
            namespace: "cases".into(),
            name: "pod".into(),
            file: "case".into(),
            line: 1,
        },
        labels: BTreeMap::new(),
        annotations: annotations(options).into_keys().collect(),
        ports: BTreeMap::new(),
        cgroup: "pod".into(),
        netns: Some("/run/netns/pod".into()),
        root: None,
        proxy: Proxy::External { cgroup: None },
        capture: None,
        failure: FailurePolicy::default(),
        addresses,
        traffic,
        origins,
        sidecar: None,
    };
    let snapshot = Snapshot {
        mesh: mesh(options),
        ..Snapshot::default()
    };
    compile::plan_of(workload, &snapshot, &Registry::new(&snapshot))
}

/// What is wrong with the options.
#[must_use]
pub fn problems(options: &OptionSet) -> Vec<String> {
    let Settings { problems, .. } = traffic(options);
    let ports = [&options.proxy_port, &options.inbound_capture_port];
    let bad_ports = ports
        .into_iter()
        .filter(|port| settings::port(port).is_none_or(|port| port == 0))
        .map(|port| format!("{port:?} is no port"));
    let bad_excluded = settings::elements(&options.exclude_inbound_ports)
        .filter(|port| settings::port(port).is_none())
        .map(|port| format!("{port:?} is no port"));
    problems
        .into_iter()
        .filter(|problem| !problem.without_effect)
        .map(|problem| format!("{}: {}", problem.annotation, problem.message))
        .chain(bad_ports)
        .chain(bad_excluded)
        .collect()
}

fn traffic(options: &OptionSet) -> Settings {
    let mut settings = Traffic::read(&annotations(options), &ProxyConfig::default());
    settings.traffic.exclude_inbound = settings::elements(&options.exclude_inbound_ports)
        .filter_map(settings::port)
        .collect();
    settings
}

fn mesh(options: &OptionSet) -> MeshConfig {
    let defaults = MeshConfig::default();
    MeshConfig {
        proxy_listen_port: settings::port(&options.proxy_port)
            .unwrap_or(defaults.proxy_listen_port),
        proxy_inbound_listen_port: settings::port(&options.inbound_capture_port)
            .unwrap_or(defaults.proxy_inbound_listen_port),
        ..defaults
    }
}

/// The options as annotations, but for what is the mesh's, and the exempt inbound ports.
fn annotations(options: &OptionSet) -> BTreeMap<String, String> {
    let OptionSet {
        proxy_port: _,
        inbound_capture_port: _,
        inbound_tunnel_port,
        proxy_uid,
        proxy_gid,
        interception_mode,
        include_inbound_ports,
        exclude_inbound_ports: _,
        include_outbound_ip_ranges,
        exclude_outbound_ip_ranges,
        include_outbound_ports,
        exclude_outbound_ports,
        exclude_interfaces,
        reroute_virtual_interfaces,
        owner_groups_include,
        owner_groups_exclude,
        host_ipv4_loopback_cidr,
        redirect_dns,
        capture_all_dns,
        dns_servers_v4,
        dns_servers_v6,
        drop_invalid,
        enable_ipv6,
        dual_stack,
    } = options;
    let texts = [
        (&TUNNEL_PORT, inbound_tunnel_port),
        (&PROXY_UID, proxy_uid),
        (&PROXY_GID, proxy_gid),
        (&INTERCEPTION_MODE, interception_mode),
        (&INCLUDE_INBOUND_PORTS, include_inbound_ports),
        (&INCLUDE_OUTBOUND_RANGES, include_outbound_ip_ranges),
        (&EXCLUDE_OUTBOUND_RANGES, exclude_outbound_ip_ranges),
        (&INCLUDE_OUTBOUND_PORTS, include_outbound_ports),
        (&EXCLUDE_OUTBOUND_PORTS, exclude_outbound_ports),
        (&EXCLUDE_INTERFACES, exclude_interfaces),
        (&VIRTUAL_INTERFACES, reroute_virtual_interfaces),
        (&OWNER_GROUPS, owner_groups_include),
        (&OWNER_GROUPS_EXCLUDE, owner_groups_exclude),
        (&LOOPBACK_CIDR, host_ipv4_loopback_cidr),
    ];
    let flags = [
        (&DNS_CAPTURE, *redirect_dns),
        (&DNS_CAPTURE_ALL, *capture_all_dns),
        (&DROP_INVALID, *drop_invalid),
        (&DUAL_STACK, *enable_ipv6 && *dual_stack),
    ];
    let servers = [dns_servers_v4.as_slice(), dns_servers_v6]
        .concat()
        .join(",");
    let texts = texts.map(|(setting, text)| (setting, text.clone()));
    let flags = flags.map(|(setting, flag)| (setting, flag.to_string()));
    texts
        .into_iter()
        .chain(flags)
        .chain([(&DNS_SERVERS, servers)])
        .map(|(setting, text)| (setting.annotation.to_owned(), text))
        .collect()
}
