//! Options taken apart, for one family.

use std::net::IpAddr;

use anyhow::bail;
use ipnet::IpNet;
use sidecar_agent::conformance::iptables::cases::OptionSet;

/// IPv4 or IPv6: each has rules of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "named after what they are")]
pub enum Family {
    V4,
    V6,
}

/// Networks whose connections are captured.
pub enum Ranges {
    /// `*`
    All,
    /// A list, perhaps empty.
    These(Vec<IpNet>),
}

/// Ports whose inbound connections are captured.
pub enum InboundPorts {
    /// `*`, without these.
    AllBut(Vec<String>),
    /// A list, perhaps empty.
    These(Vec<String>),
}

/// Groups whose outbound connections are captured.
pub enum OwnerGroups {
    /// `*`, without these.
    AllBut(Vec<String>),
    /// A list, perhaps empty.
    These(Vec<String>),
}

/// Servers to which DNS is captured.
pub enum Servers {
    All,
    These(Vec<IpAddr>),
}

/// An owner of sockets.
pub struct Owner {
    /// A user rather than a group.
    pub is_uid: bool,
    /// The option of the match `owner`.
    pub option: String,
}

/// What the tables are made of.
pub struct Settings<'a> {
    pub options: &'a OptionSet,
    /// The network that counts as loopback.
    pub loopback: String,
    /// The source address of the proxy's inbound passthrough connections.
    pub passthrough: &'static str,
    /// TPROXY rather than REDIRECT.
    pub tproxy: bool,
    pub uids: Vec<String>,
    pub gids: Vec<String>,
    pub inbound_ports: InboundPorts,
    pub include_ranges: Ranges,
    pub exclude_ranges: Vec<IpNet>,
    /// A range of either family lies in the loopback network.
    pub includes_loopback: bool,
    pub include_outbound_ports: Vec<String>,
    pub exclude_outbound_ports: Vec<String>,
    pub exclude_interfaces: Vec<String>,
    pub virtual_interfaces: Vec<String>,
    pub owner_groups: OwnerGroups,
    /// `None` when DNS is not captured in either family.
    pub dns: Option<Servers>,
}

impl<'a> Settings<'a> {
    /// # Errors
    /// When an option holds what istio-iptables refuses.
    pub fn new(options: &'a OptionSet, family: Family) -> anyhow::Result<Self> {
        if options.exclude_outbound_ip_ranges == "*" {
            bail!("excludeOutboundIPRanges cannot be `*`");
        }
        let v4 = family == Family::V4;
        let of_family = |nets: &[IpNet]| -> Vec<IpNet> {
            let nets = nets.iter().copied();
            nets.filter(|net| net.addr().is_ipv4() == v4).collect()
        };
        let included = networks(&options.include_outbound_ip_ranges);
        Ok(Self {
            options,
            loopback: if v4 {
                options.host_ipv4_loopback_cidr.clone()
            } else {
                "::1/128".to_owned()
            },
            passthrough: if v4 { "127.0.0.6/32" } else { "::6/128" },
            tproxy: options.interception_mode == "TPROXY",
            uids: list(&options.proxy_uid),
            gids: list(&options.proxy_gid),
            inbound_ports: if options.include_inbound_ports == "*" {
                InboundPorts::AllBut(list(&options.exclude_inbound_ports))
            } else {
                InboundPorts::These(list(&options.include_inbound_ports))
            },
            include_ranges: if options.include_outbound_ip_ranges == "*" {
                Ranges::All
            } else {
                Ranges::These(of_family(&included))
            },
            exclude_ranges: of_family(&networks(&options.exclude_outbound_ip_ranges)),
            includes_loopback: included.iter().any(|net| net.addr().is_loopback()),
            include_outbound_ports: list(&options.include_outbound_ports),
            exclude_outbound_ports: list(&options.exclude_outbound_ports),
            exclude_interfaces: list(&options.exclude_interfaces),
            virtual_interfaces: list(&options.reroute_virtual_interfaces),
            owner_groups: if options.owner_groups_include == "*" {
                OwnerGroups::AllBut(list(&options.owner_groups_exclude))
            } else {
                OwnerGroups::These(list(&options.owner_groups_include))
            },
            dns: servers(options, v4)?,
        })
    }

    /// The proxy's uids, then its gids.
    pub fn owners(&self) -> impl Iterator<Item = Owner> {
        let uids = self.uids.iter().map(|uid| (true, "uid", uid));
        let gids = self.gids.iter().map(|gid| (false, "gid", gid));
        uids.chain(gids).map(|(is_uid, kind, id)| Owner {
            is_uid,
            option: format!("--{kind}-owner {id}"),
        })
    }

    /// Whether anything inbound is captured by port.
    pub fn captures_inbound(&self) -> bool {
        !matches!(&self.inbound_ports, InboundPorts::These(ports) if ports.is_empty())
    }
}

/// The items of a list; empty ones are tolerated.
fn list(text: &str) -> Vec<String> {
    let items = text.split(',').map(str::trim);
    items
        .filter(|item| !item.is_empty())
        .map(ToOwned::to_owned)
        .collect()
}

/// The networks of a list; istio-iptables passes over what is none.
fn networks(text: &str) -> Vec<IpNet> {
    let items = list(text).into_iter();
    items.filter_map(|item| item.parse().ok()).collect()
}

/// DNS capture without any server to capture is off.
fn servers(options: &OptionSet, v4: bool) -> anyhow::Result<Option<Servers>> {
    let none = options.dns_servers_v4.is_empty() && options.dns_servers_v6.is_empty();
    if !options.redirect_dns || (none && !options.capture_all_dns) {
        return Ok(None);
    }
    if options.capture_all_dns {
        return Ok(Some(Servers::All));
    }
    let servers = if v4 {
        &options.dns_servers_v4
    } else {
        &options.dns_servers_v6
    };
    let servers = servers.iter().map(|server| server.parse());
    Ok(Some(Servers::These(servers.collect::<Result<_, _>>()?)))
}
