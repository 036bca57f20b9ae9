//! The settings, and what without a proxy follows from them.

use std::{collections::BTreeMap, net::IpAddr, str::FromStr};

use ipnet::{IpNet, Ipv4Net};
use sidecar_agent::model::mesh::{InterceptionMode, MeshConfig};
use sidecar_common::Reason;

pub struct Traffic {
    pub mode: InterceptionMode,
    pub include_inbound: Option<Vec<u16>>,
    exclude_inbound: Vec<u16>,
    pub include_ranges: Option<Vec<IpNet>>,
    pub exclude_ranges: Vec<IpNet>,
    pub include_outbound: Vec<u16>,
    pub exclude_outbound: Vec<u16>,
    pub exclude_interfaces: Vec<String>,
    pub virtual_interfaces: Vec<String>,
    pub uids: Vec<u32>,
    pub gids: Vec<u32>,
    /// `None`: `*`.
    pub groups: Option<Vec<u32>>,
    pub groups_exclude: Vec<u32>,
    pub loopback: Ipv4Net,
    /// `None`: off. No server: all.
    pub dns: Option<Vec<IpAddr>>,
    pub tunnel_port: u16,
    pub dual_stack: bool,
}

/// The elements that can be read.
fn list<T: FromStr>(text: &str) -> Vec<T> {
    text.split(',')
        .filter_map(|element| element.trim().parse().ok())
        .collect()
}

fn boolean(text: &str) -> Option<bool> {
    let words = ["1", "t", "T", "true", "TRUE", "True"];
    let no = ["0", "f", "F", "false", "FALSE", "False"];
    (words.contains(&text) || no.contains(&text)).then(|| words.contains(&text))
}

impl Traffic {
    pub fn of(annotations: &BTreeMap<String, String>, mesh: &MeshConfig) -> Self {
        let mesh = &mesh.default_config;
        // What is generated is JSON.
        let own: serde_json::Value = annotations
            .get("proxy.istio.io/config")
            .map_or(serde_json::Value::Null, |text| {
                serde_json::from_str(text).expect("JSON")
            });
        let get = |name: &str| annotations.get(name).map(String::as_str);
        let traffic = |name: &str| get(&format!("traffic.sidecar.istio.io/{name}"));
        let ours = |name: &str| get(&format!("capture.sidecar-agent.io/{name}"));
        let environment = |name: &str| {
            let own = own["proxyMetadata"][name].as_str();
            own.or(mesh.proxy_metadata.get(name).map(String::as_str))
        };
        let either = |name: &str, variable: &str| ours(name).or_else(|| environment(variable));
        // A single value that cannot be read is none.
        let flag = |name: &str, variable: &str| {
            let ours = ours(name).and_then(boolean);
            ours.or_else(|| environment(variable).and_then(boolean))
        };
        let mode = |text: &str| match text {
            "TPROXY" => Some(InterceptionMode::Tproxy),
            "NONE" => Some(InterceptionMode::None),
            "REDIRECT" => Some(InterceptionMode::Redirect),
            _ => None,
        };
        let mut exclude_inbound: Vec<u16> =
            list(traffic("excludeInboundPorts").unwrap_or_default());
        exclude_inbound.extend([15021, 15090]);
        let own_status = own["statusPort"].as_u64().map(|port| port.to_string());
        let mesh_status = mesh.status_port.map(|port| port.to_string());
        let status = get("status.sidecar.istio.io/port")
            .map(str::to_owned)
            .or(own_status)
            .or(mesh_status);
        match status.as_deref() {
            Some("0") => {}
            Some(port) => exclude_inbound.extend(list::<u16>(port)),
            None => exclude_inbound.push(15020),
        }
        let ids = |name: &str| {
            let ids: Vec<u32> = list(ours(name).unwrap_or_default());
            (!ids.is_empty()).then_some(ids)
        };
        let uids = ids("proxy-uid").unwrap_or_else(|| vec![1337]);
        let names = |text: &str| list::<String>(text).into_iter().filter(|n| !n.is_empty());
        let servers = ours("dns-servers").filter(|text| !text.is_empty());
        let all_dns = ours("dns-capture-all").and_then(boolean);
        let dns = match (
            flag("dns-capture", "ISTIO_META_DNS_CAPTURE"),
            all_dns.unwrap_or(servers.is_none()),
        ) {
            (Some(true), true) => Some(Vec::new()),
            (Some(true), false) => {
                Some(list(servers.unwrap_or_default())).filter(|l| !l.is_empty())
            }
            _ => None,
        };
        let groups = either("outbound-owner-groups", "ISTIO_OUTBOUND_OWNER_GROUPS");
        let groups_exclude = either(
            "outbound-owner-groups-exclude",
            "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE",
        );
        let loopback = either(
            "outbound-ipv4-loopback-cidr",
            "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR",
        );
        Self {
            mode: get("sidecar.istio.io/interceptionMode")
                .and_then(mode)
                .or(own["interceptionMode"].as_str().and_then(mode))
                .or(mesh.interception_mode)
                .unwrap_or_default(),
            include_inbound: match traffic("includeInboundPorts") {
                None | Some("*") => None,
                Some(text) => Some(list(text)),
            },
            exclude_inbound,
            include_ranges: match traffic("includeOutboundIPRanges") {
                None | Some("*") => None,
                Some(text) => Some(list(text)),
            },
            exclude_ranges: list(traffic("excludeOutboundIPRanges").unwrap_or_default()),
            include_outbound: list(traffic("includeOutboundPorts").unwrap_or_default()),
            exclude_outbound: list(traffic("excludeOutboundPorts").unwrap_or_default()),
            exclude_interfaces: names(traffic("excludeInterfaces").unwrap_or_default()).collect(),
            virtual_interfaces: names(
                get("istio.io/reroute-virtual-interfaces")
                    .or(traffic("kubevirtInterfaces"))
                    .unwrap_or_default(),
            )
            .collect(),
            gids: ids("proxy-gid").unwrap_or_else(|| uids.clone()),
            uids,
            groups: groups.filter(|text| *text != "*").map(list),
            groups_exclude: list(groups_exclude.unwrap_or_default()),
            loopback: loopback.unwrap_or("127.0.0.1/32").parse().expect("valid"),
            dns,
            tunnel_port: either("inbound-tunnel-port", "INBOUND_TUNNEL_PORT")
                .map_or(15008, |text| text.parse().expect("valid")),
            dual_stack: flag("dual-stack", "ISTIO_DUAL_STACK") == Some(true),
        }
    }

    /// Whether connections of this group are captured.
    pub fn captures_group(&self, gid: u32) -> bool {
        match &self.groups {
            Some(groups) => groups.contains(&gid),
            None => !self.groups_exclude.contains(&gid),
        }
    }

    /// Whether nothing is captured by this interface.
    pub fn excludes_interface(&self, name: &str) -> bool {
        self.exclude_interfaces.iter().any(|declared| {
            declared == name
                || declared
                    .strip_suffix('+')
                    .is_some_and(|prefix| name.starts_with(prefix))
        })
    }

    /// Whether IPv6 has rules, for a workload with these addresses.
    pub fn is_v6_on(&self, addresses: &[IpAddr]) -> bool {
        let known: Vec<&IpAddr> = addresses
            .iter()
            .filter(|ip| match ip {
                IpAddr::V4(ip) => !ip.is_link_local() && !ip.is_loopback(),
                IpAddr::V6(ip) => !ip.is_unicast_link_local() && !ip.is_loopback(),
            })
            .collect();
        let counting = if self.dual_stack { known.len() } else { 1 };
        known.iter().take(counting).any(|ip| ip.is_ipv6())
    }

    /// Why without a proxy an outbound connection is captured, or why not. Of several reasons why not, that of
    /// the lists is given first: calls to oneself are looked for among what is captured.
    pub fn outbound(&self, ip: IpAddr, port: u16, own: &[IpAddr]) -> Result<Reason, Reason> {
        let captured = self.listed(ip, port)?;
        let exempts_self = self.exempts_self();
        if exempts_self && ip.is_loopback() {
            Err(Reason::Loopback)
        } else if exempts_self && own.contains(&ip) {
            Err(Reason::SelfCall)
        } else {
            Ok(captured)
        }
    }

    fn listed(&self, ip: IpAddr, port: u16) -> Result<Reason, Reason> {
        let within = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&ip));
        if self.exclude_outbound.contains(&port) {
            return Err(Reason::ExcludedPort);
        }
        if !self.exempts_self() && is_the_loopback(ip) {
            return Err(Reason::Loopback);
        }
        if within(&self.exclude_ranges) {
            return Err(Reason::ExcludedRange);
        }
        match &self.include_ranges {
            None => Ok(Reason::CaptureAll),
            Some(_) if self.include_outbound.contains(&port) => Ok(Reason::IncludedPort),
            Some(nets) if within(nets) => Ok(Reason::IncludedRange),
            Some(_) => Err(Reason::NotIncluded),
        }
    }

    /// Without these rules where an included network is a loopback one.
    pub fn exempts_self(&self) -> bool {
        !self
            .include_ranges
            .iter()
            .flatten()
            .any(|net| net.network().is_loopback())
    }

    /// Whether this is the tunnel port, which is captured in mode TPROXY only.
    pub fn is_tunnel(&self, port: u16) -> bool {
        port == self.tunnel_port && self.mode != InterceptionMode::Tproxy
    }

    /// Why an inbound connection is captured, or why not.
    pub fn inbound(&self, port: u16) -> Result<Reason, Reason> {
        let tunnel = self.is_tunnel(port);
        match &self.include_inbound {
            Some(ports) if !ports.contains(&port) => Err(Reason::NotIncluded),
            _ if tunnel => Err(Reason::ExcludedPort),
            Some(_) => Ok(Reason::IncludedPort),
            None if self.exclude_inbound.contains(&port) => Err(Reason::ExcludedPort),
            None => Ok(Reason::CaptureAll),
        }
    }
}

fn is_the_loopback(ip: IpAddr) -> bool {
    ip == IpAddr::from([127, 0, 0, 1]) || ip == IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)
}
