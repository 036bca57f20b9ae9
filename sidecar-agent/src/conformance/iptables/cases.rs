//! The schema of `iptables-cases.yaml`: option sets of `istio-iptables`, and what became of a
//! connection under one of them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use crate::conformance::{self, Malformed};

/// A file of cases.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct File {
    /// The option sets, by name.
    pub option_sets: BTreeMap<String, OptionSet>,
    /// The cases.
    pub cases: Vec<Case>,
}

/// Reads a file of cases.
///
/// # Errors
/// When it is none.
pub fn read(text: &str) -> Result<File, Malformed> {
    conformance::read(text)
}

/// The options of `istio-iptables`; the defaults are those that the file's head states.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
#[allow(
    clippy::struct_excessive_bools,
    reason = "they are the options of istio-iptables"
)]
pub struct OptionSet {
    /// Where outbound connections go.
    pub proxy_port: String,
    /// Where inbound connections go.
    pub inbound_capture_port: String,
    /// The tunnel port, exempt from redirection.
    pub inbound_tunnel_port: String,
    /// Uids of the proxy, separated by commas.
    #[serde(rename = "proxyUID")]
    pub proxy_uid: String,
    /// Gids of the proxy, separated by commas.
    #[serde(rename = "proxyGID")]
    pub proxy_gid: String,
    /// `REDIRECT` or `TPROXY`.
    pub interception_mode: String,
    /// Inbound ports, `*`, or nothing.
    pub include_inbound_ports: String,
    /// Exempt inbound ports.
    pub exclude_inbound_ports: String,
    /// Outbound networks, `*`, or nothing.
    #[serde(rename = "includeOutboundIPRanges")]
    pub include_outbound_ip_ranges: String,
    /// Exempt outbound networks.
    #[serde(rename = "excludeOutboundIPRanges")]
    pub exclude_outbound_ip_ranges: String,
    /// Outbound ports captured whatever the network.
    pub include_outbound_ports: String,
    /// Exempt outbound ports.
    pub exclude_outbound_ports: String,
    /// Exempt interfaces.
    pub exclude_interfaces: String,
    /// Interfaces whose inbound traffic is taken for outbound.
    pub reroute_virtual_interfaces: String,
    /// Groups whose outbound connections are captured, or `*`.
    pub owner_groups_include: String,
    /// Groups whose outbound connections are exempt.
    pub owner_groups_exclude: String,
    /// What counts as the loopback network.
    #[serde(rename = "hostIPv4LoopbackCidr")]
    pub host_ipv4_loopback_cidr: String,
    /// DNS is captured.
    #[serde(rename = "redirectDNS")]
    pub redirect_dns: bool,
    /// DNS to any server is.
    #[serde(rename = "captureAllDNS")]
    pub capture_all_dns: bool,
    /// The servers of resolv.conf.
    #[serde(rename = "dnsServersV4")]
    pub dns_servers_v4: Vec<String>,
    /// The same by IPv6.
    #[serde(rename = "dnsServersV6")]
    pub dns_servers_v6: Vec<String>,
    /// Packets that conntrack finds invalid are dropped.
    pub drop_invalid: bool,
    /// IPv6 has rules, too.
    #[serde(rename = "enableIPv6")]
    pub enable_ipv6: bool,
    /// Any address of the pod, not only its first, may turn IPv6 on.
    pub dual_stack: bool,
}

impl Default for OptionSet {
    fn default() -> Self {
        Self {
            proxy_port: "15001".into(),
            inbound_capture_port: "15006".into(),
            inbound_tunnel_port: "15008".into(),
            proxy_uid: "1337".into(),
            proxy_gid: "1337".into(),
            interception_mode: "REDIRECT".into(),
            include_inbound_ports: String::new(),
            exclude_inbound_ports: String::new(),
            include_outbound_ip_ranges: String::new(),
            exclude_outbound_ip_ranges: String::new(),
            include_outbound_ports: String::new(),
            exclude_outbound_ports: String::new(),
            exclude_interfaces: String::new(),
            reroute_virtual_interfaces: String::new(),
            owner_groups_include: "*".into(),
            owner_groups_exclude: String::new(),
            host_ipv4_loopback_cidr: "127.0.0.1/32".into(),
            redirect_dns: false,
            capture_all_dns: false,
            dns_servers_v4: Vec::new(),
            dns_servers_v6: Vec::new(),
            drop_invalid: false,
            enable_ipv6: false,
            dual_stack: false,
        }
    }
}

/// A connection or datagram, and what became of it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Case {
    /// Its name.
    pub id: String,
    /// The option set in force.
    pub options: String,
    /// Made inside the pod, or arriving at it.
    pub direction: Direction,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Who makes it; outbound only.
    #[serde(default)]
    pub uid: u32,
    /// As which group.
    #[serde(default)]
    pub gid: u32,
    /// Its other groups.
    #[serde(default)]
    pub supplementary_groups: Vec<u32>,
    /// The address it is bound to first.
    #[serde(default)]
    pub src: Option<IpAddr>,
    /// Where it is going.
    pub dst: IpAddr,
    /// The port there.
    pub dport: u16,
    /// The interface it arrives at; inbound only.
    #[serde(default)]
    pub in_interface: Option<String>,
    /// Whether it is captured.
    pub captured: bool,
    /// To which port.
    #[serde(default)]
    pub to_port: Option<u16>,
    /// What `SO_ORIGINAL_DST` says to who captured it.
    #[serde(default, deserialize_with = "address")]
    pub original_dst: Option<SocketAddr>,
    /// What getsockname says to who captured it.
    #[serde(default, deserialize_with = "address")]
    pub local_addr_seen: Option<SocketAddr>,
    /// The address of who made it, as seen by who captured it.
    #[serde(default)]
    pub peer_addr_seen: Option<IpAddr>,
    /// For people.
    #[serde(default)]
    pub note: Option<String>,
}

/// Seen from the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "named after what they are")]
pub enum Direction {
    Outbound,
    Inbound,
}

/// The transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "named after what they are")]
pub enum Protocol {
    Tcp,
    Udp,
}

/// `1.2.3.4:5`, `[fd00::1]:5`, or as the file also has it, `fd00::1:5` without brackets.
fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else {
        return Ok(None);
    };
    let without_brackets = || {
        let (ip, port) = text.rsplit_once(':')?;
        Some(SocketAddr::new(ip.parse().ok()?, port.parse().ok()?))
    };
    match text.parse().ok().or_else(without_brackets) {
        Some(address) => Ok(Some(address)),
        None => Err(D::Error::custom(format!("{text:?} is no address and port"))),
    }
}
