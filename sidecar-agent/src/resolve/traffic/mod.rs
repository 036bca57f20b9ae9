//! What a workload's settings capture and exempt.
//!
//! The settings, their defaults and their order are those of Istio's injector, CNI plugin and
//! `istio-iptables` (see [`crate::model::settings`]).

mod read;
mod reader;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net};
use sidecar_common::Reason;

use crate::model::mesh::InterceptionMode;

use super::capture;

pub use read::Settings;
pub use reader::{Origins, Problem, Written};

/// The proxy's uid unless said otherwise.
pub const DEFAULT_PROXY_UID: u32 = 1337;
/// The port of the agent's merged metrics and health, unless said otherwise.
pub const DEFAULT_STATUS_PORT: u16 = 15020;
/// The tunnel port unless said otherwise: never captured in mode REDIRECT.
pub const DEFAULT_TUNNEL_PORT: u16 = 15008;
/// What counts as loopback unless said otherwise.
pub const DEFAULT_LOOPBACK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::LOCALHOST, 32);

/// Everything, or a list.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Include<T> {
    /// `*`.
    All,
    /// These.
    Only(T),
}

/// Whose outbound connections are captured, by group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum OwnerGroups {
    /// Those of these groups only.
    Only(BTreeSet<u32>),
    /// Those of all but these groups.
    Except(BTreeSet<u32>),
}

/// Which DNS the proxy answers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Dns {
    /// None.
    Off,
    /// All.
    All,
    /// What is asked of these servers.
    Only(BTreeSet<IpAddr>),
}

/// What is captured and what is exempt.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Traffic {
    /// Inbound ports.
    pub include_inbound: Include<BTreeSet<u16>>,
    /// Exempt inbound ports; counts only where all ports are included.
    pub exclude_inbound: BTreeSet<u16>,
    /// Outbound networks.
    pub include_ranges: Include<BTreeSet<IpNet>>,
    /// Exempt outbound networks.
    pub exclude_ranges: BTreeSet<IpNet>,
    /// Outbound ports captured whatever the network.
    pub include_outbound: BTreeSet<u16>,
    /// Exempt outbound ports.
    pub exclude_outbound: BTreeSet<u16>,
    /// Interfaces by which nothing is captured.
    pub exclude_interfaces: BTreeSet<String>,
    /// Interfaces whose inbound traffic is taken for outbound.
    pub virtual_interfaces: BTreeSet<String>,
    /// The interception mode.
    pub mode: InterceptionMode,
    /// The port of the proxy's merged metrics and health, exempt inbound; 0: none.
    pub status_port: u16,
    /// The tunnel port, exempt in mode REDIRECT.
    pub tunnel_port: u16,
    /// The proxy's users, at least one. Of their calls to the workload itself only the first one's
    /// are led to the inbound listener.
    pub proxy_uids: Vec<u32>,
    /// The proxy's groups, at least one.
    pub proxy_gids: Vec<u32>,
    /// Whose outbound connections are captured.
    pub owner_groups: OwnerGroups,
    /// What is never captured as loopback.
    pub loopback: Ipv4Net,
    /// The DNS that the proxy answers.
    pub dns: Dns,
    /// Any address of the workload, not only its first, may turn IPv6 on.
    pub dual_stack: bool,
    /// Packets that connection tracking finds invalid are to be dropped. Accepted; as nothing here
    /// tracks connections, nothing follows from it.
    pub drop_invalid: bool,
    /// Connections to the proxy's outbound port are accelerated, where they can be.
    pub accelerate: bool,
}

impl Default for Traffic {
    /// As with no setting at all, but without the exempt inbound ports.
    fn default() -> Self {
        Self {
            include_inbound: Include::All,
            exclude_inbound: BTreeSet::new(),
            include_ranges: Include::All,
            exclude_ranges: BTreeSet::new(),
            include_outbound: BTreeSet::new(),
            exclude_outbound: BTreeSet::new(),
            exclude_interfaces: BTreeSet::new(),
            virtual_interfaces: BTreeSet::new(),
            mode: InterceptionMode::Redirect,
            status_port: DEFAULT_STATUS_PORT,
            tunnel_port: DEFAULT_TUNNEL_PORT,
            proxy_uids: vec![DEFAULT_PROXY_UID],
            proxy_gids: vec![DEFAULT_PROXY_UID],
            owner_groups: OwnerGroups::Except(BTreeSet::new()),
            loopback: DEFAULT_LOOPBACK,
            dns: Dns::Off,
            dual_stack: false,
            drop_invalid: false,
            accelerate: false,
        }
    }
}

impl Traffic {
    /// The same outbound, and nothing said of what is inbound, of the proxy's, or of who calls and
    /// by which way.
    #[must_use]
    pub fn outbound_only(&self) -> Self {
        let Self {
            include_inbound: _,
            exclude_inbound: _,
            include_ranges,
            exclude_ranges,
            include_outbound,
            exclude_outbound,
            exclude_interfaces: _,
            virtual_interfaces: _,
            mode,
            status_port: _,
            tunnel_port: _,
            proxy_uids: _,
            proxy_gids: _,
            owner_groups: _,
            loopback: _,
            dns,
            dual_stack: _,
            drop_invalid: _,
            accelerate: _,
        } = self;
        Self {
            include_ranges: include_ranges.clone(),
            exclude_ranges: exclude_ranges.clone(),
            include_outbound: include_outbound.clone(),
            exclude_outbound: exclude_outbound.clone(),
            mode: *mode,
            dns: dns.clone(),
            ..Self::default()
        }
    }

    /// Why an outbound connection is captured (`Ok`) or not (`Err`). Self-calls and loopback
    /// apart. First match wins: excluded port, excluded range, included port, included range.
    ///
    /// # Errors
    /// The reason why it is not captured: an answer, not a failure.
    pub fn outbound(&self, ip: IpAddr, port: u16) -> Result<Reason, Reason> {
        if self.exclude_outbound.contains(&port) {
            Err(Reason::ExcludedPort)
        } else if let Some((_, reason)) = self.exempt_ranges().find(|(net, _)| net.contains(&ip)) {
            Err(reason)
        } else {
            match &self.include_ranges {
                Include::All => Ok(Reason::CaptureAll),
                _ if self.include_outbound.contains(&port) => Ok(Reason::IncludedPort),
                Include::Only(nets) if nets.iter().any(|net| net.contains(&ip)) => {
                    Ok(Reason::IncludedRange)
                }
                Include::Only(_) => Err(Reason::NotIncluded),
            }
        }
    }

    /// Why an inbound connection is captured (`Ok`) or not (`Err`). An exclude list does not
    /// count beside an include list.
    ///
    /// # Errors
    /// The reason why it is not captured: an answer, not a failure.
    pub fn inbound(&self, port: u16) -> Result<Reason, Reason> {
        match &self.include_inbound {
            _ if self.always_exempt_inbound(port) => Err(Reason::ExcludedPort),
            Include::All if self.exclude_inbound.contains(&port) => Err(Reason::ExcludedPort),
            Include::All => Ok(Reason::CaptureAll),
            Include::Only(ports) if ports.contains(&port) => Ok(Reason::IncludedPort),
            Include::Only(_) => Err(Reason::NotIncluded),
        }
    }

    /// Inbound ports that are exempt although everything is included.
    pub fn exempt_inbound(&self) -> impl Iterator<Item = u16> + '_ {
        let tunnel = Some(self.tunnel_port).filter(|port| self.always_exempt_inbound(*port));
        self.exclude_inbound.iter().copied().chain(tunnel)
    }

    /// Whether an inbound port is exempt whatever the annotations say.
    #[must_use]
    pub fn is_always_exempt(&self, port: u16) -> bool {
        capture::STATUS_PORTS.contains(&port) || self.always_exempt_inbound(port)
    }

    /// In mode TPROXY the tunnel port is captured like any other.
    fn always_exempt_inbound(&self, port: u16) -> bool {
        port == self.tunnel_port && self.mode == InterceptionMode::Redirect
    }

    /// Whether IPv6 is captured for a proxy of a workload with these addresses: if the first one
    /// that others can reach is IPv6, or with dual stack any of them.
    #[must_use]
    pub fn captures_v6(&self, addresses: &[IpAddr]) -> bool {
        let mut reachable = addresses.iter().filter(|ip| match ip {
            IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
        });
        if self.dual_stack {
            reachable.any(IpAddr::is_ipv6)
        } else {
            reachable.next().is_some_and(IpAddr::is_ipv6)
        }
    }

    /// Outbound networks that are exempt whatever includes them, without a proxy.
    pub fn exempt_ranges(&self) -> impl Iterator<Item = (IpNet, Reason)> + '_ {
        // With captured loopback networks, 127.0.0.1 and ::1 themselves still are not captured.
        let loopbacks = [
            IpNet::from(IpAddr::from(Ipv4Addr::LOCALHOST)),
            IpNet::from(IpAddr::from(Ipv6Addr::LOCALHOST)),
        ];
        let loopbacks = loopbacks.into_iter().filter(|_| !self.exempts_self());
        loopbacks
            .map(|net| (net, Reason::Loopback))
            .chain(self.excluded_ranges())
    }

    /// Outbound networks that are excluded, with the reason.
    pub fn excluded_ranges(&self) -> impl Iterator<Item = (IpNet, Reason)> + '_ {
        let nets = self.exclude_ranges.iter();
        nets.map(|net| (*net, Reason::ExcludedRange))
    }

    /// Whether calls of the workload to itself are exempt: unless an included network is a
    /// loopback one (`istio-iptables` then leaves these rules out).
    #[must_use]
    pub fn exempts_self(&self) -> bool {
        match &self.include_ranges {
            Include::All => true,
            Include::Only(nets) => !nets.iter().any(|net| net.addr().is_loopback()),
        }
    }
}
