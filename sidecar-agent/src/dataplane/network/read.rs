//! Interfaces and routes of a namespace.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
};

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::{
    Handle, RouteMessageBuilder,
    packet_route::{
        link::LinkAttribute,
        route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType},
    },
};

use sidecar_common::Addr;

use super::netlink;
use crate::dataplane::netns::Netns;

/// Index of `lo`, the same in every namespace.
pub(super) const LO: u32 = 1;

/// Nobody's addresses (RFC 5737, RFC 3849): what reaches them reaches the outside.
const OUTSIDE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const OUTSIDE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// Interfaces and routes of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// Indices of the interfaces, by name.
    pub interfaces: BTreeMap<String, u32>,
    /// The unicast routes of the main table; of two to one network, the one that is taken.
    pub routes: Vec<RouteTo>,
}

/// From where the connections of a namespace come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sources {
    /// The routes have to be asked.
    pub routed: bool,
    /// The only address, as `Identity::source_v4`; 0: there is none.
    pub v4: u32,
    /// The only address; a wildcard: there is none.
    pub v6: Addr,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteTo {
    /// To where.
    pub net: IpNet,
    /// By which interface.
    pub interface: u32,
    /// Which address the kernel chooses for a socket that has none; `None`: none reaches there.
    pub source: Option<IpAddr>,
}

impl Network {
    /// Asks the kernel.
    ///
    /// # Errors
    /// If the namespace cannot be entered, or netlink fails.
    pub fn read(netns: &Netns) -> Result<Self> {
        netlink::within(netns, async |handle| {
            let interfaces = interfaces(&handle).await?;
            let mut found: BTreeMap<IpNet, (u32, u32)> = BTreeMap::new();
            let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
            let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
            for family in [v4, v6] {
                let mut routes = handle.route().get(family).execute();
                while let Some(route) = routes.try_next().await.context("reading the routes")? {
                    let Some((net, interface, metric)) = unicast(&route) else {
                        continue;
                    };
                    // What leads to the namespace itself is told by its addresses.
                    if interface == LO {
                        continue;
                    }
                    let best = found.entry(net).or_insert((interface, metric));
                    if metric < best.1 {
                        *best = (interface, metric);
                    }
                }
            }
            let routes = found.into_iter().map(|(net, (interface, _))| RouteTo {
                net,
                interface,
                source: source_to(net),
            });
            Ok(Self {
                interfaces,
                routes: routes.collect(),
            })
        })
        .with_context(|| format!("reading the network of {}", netns.path.display()))
    }

    /// From where connections come, as programs are told. `by_interface`: it matters as well by
    /// which interface they leave.
    #[must_use]
    pub fn sources(&self, by_interface: bool) -> Sources {
        let (v4, v6) = (self.source(true), self.source(false));
        let routed = by_interface || v4.is_err() || v6.is_err();
        let known = |found: Result<Option<IpAddr>, ()>| found.ok().flatten().map(Addr::from);
        Sources {
            routed,
            v4: known(v4).map_or(0, |addr| addr.v4()),
            v6: known(v6).unwrap_or(Addr::ANY),
        }
    }

    /// The one address from which all connections of a family come, as far as they come from
    /// anywhere. `Err`: it depends on where they go.
    ///
    /// # Errors
    /// An answer, not a failure.
    fn source(&self, v4: bool) -> Result<Option<IpAddr>, ()> {
        let mut sources = self
            .routes
            .iter()
            .filter(|route| route.net.addr().is_ipv4() == v4)
            .filter_map(|route| route.source);
        let first = sources.next();
        if sources.all(|source| Some(source) == first) {
            Ok(first)
        } else {
            Err(())
        }
    }
}

async fn interfaces(handle: &Handle) -> Result<BTreeMap<String, u32>> {
    let mut links = handle.link().get().execute();
    let mut found = BTreeMap::new();
    while let Some(link) = links.try_next().await.context("reading the interfaces")? {
        for attribute in link.attributes {
            if let LinkAttribute::IfName(name) = attribute {
                found.insert(name, link.header.index);
            }
        }
    }
    Ok(found)
}

/// Destination, interface and metric of a unicast route of the main table.
fn unicast(route: &RouteMessage) -> Option<(IpNet, u32, u32)> {
    let of_main = route.header.table == RouteHeader::RT_TABLE_MAIN;
    if !of_main || route.header.kind != RouteType::Unicast {
        return None;
    }
    let (mut addr, mut interface, mut metric) = (None, None, 0);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => addr = Some(IpAddr::V4(*ip)),
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => addr = Some(IpAddr::V6(*ip)),
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Priority(priority) => metric = *priority,
            // Of several ways the first one.
            RouteAttribute::MultiPath(hops) => {
                interface = interface.or(hops.first().map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    let unspecified = || match route.header.address_family {
        rtnetlink::packet_route::AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let net = IpNet::new(
        addr.unwrap_or_else(unspecified),
        route.header.destination_prefix_length,
    );
    Some((net.ok()?, interface?, metric))
}

/// The address the kernel gives to a socket that is connected there (no packet is sent: it is UDP).
fn source_to(net: IpNet) -> Option<IpAddr> {
    let (any, there): (IpAddr, IpAddr) = match net {
        IpNet::V4(v4) => (Ipv4Addr::UNSPECIFIED.into(), {
            match v4.prefix_len() {
                0 => OUTSIDE_V4,
                _ => v4.hosts().next()?.into(),
            }
        }),
        IpNet::V6(v6) => (Ipv6Addr::UNSPECIFIED.into(), {
            match v6.prefix_len() {
                0 => OUTSIDE_V6,
                _ => v6.hosts().nth(1).or_else(|| v6.hosts().next())?.into(),
            }
        }),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((there, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified())
}
