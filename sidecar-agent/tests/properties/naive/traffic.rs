//! The annotations, in the order of the `istio-iptables` rules.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use sidecar_agent::model::mesh::InterceptionMode;
use sidecar_common::Reason;

pub struct Traffic {
    pub mode: InterceptionMode,
    pub include_inbound: Option<Vec<u16>>,
    exclude_inbound: Vec<u16>,
    include_ranges: Option<Vec<IpNet>>,
    exclude_ranges: Vec<IpNet>,
    include_outbound: Vec<u16>,
    exclude_outbound: Vec<u16>,
}

impl Traffic {
    pub fn of(annotations: &BTreeMap<String, String>, mesh: InterceptionMode) -> Self {
        let get = |name: &str| annotations.get(name).map(String::as_str);
        let traffic = |name: &str| get(&format!("traffic.sidecar.istio.io/{name}"));
        let ports = |text: &str| -> Vec<u16> {
            text.split(',')
                .filter_map(|port| port.trim().parse().ok())
                .collect()
        };
        let ranges = |text: &str| -> Vec<IpNet> {
            text.split(',')
                .filter_map(|net| net.trim().parse().ok())
                .collect()
        };
        let mut exclude_inbound = ports(traffic("excludeInboundPorts").unwrap_or_default());
        exclude_inbound.extend([15021, 15090]);
        match get("status.sidecar.istio.io/port") {
            Some("0") => {}
            Some(port) => exclude_inbound.extend(ports(port)),
            None => exclude_inbound.push(15020),
        }
        Self {
            mode: match get("sidecar.istio.io/interceptionMode") {
                Some("TPROXY") => InterceptionMode::Tproxy,
                Some("NONE") => InterceptionMode::None,
                Some("REDIRECT") => InterceptionMode::Redirect,
                _ => mesh,
            },
            include_inbound: match traffic("includeInboundPorts") {
                None | Some("*") => None,
                Some(text) => Some(ports(text)),
            },
            exclude_inbound,
            include_ranges: match traffic("includeOutboundIPRanges") {
                None | Some("*") => None,
                Some(text) => Some(ranges(text)),
            },
            exclude_ranges: ranges(traffic("excludeOutboundIPRanges").unwrap_or_default()),
            include_outbound: ports(traffic("includeOutboundPorts").unwrap_or_default()),
            exclude_outbound: ports(traffic("excludeOutboundPorts").unwrap_or_default()),
        }
    }

    /// Why an outbound connection is captured, or why not. Of several reasons why not, that of
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
    fn exempts_self(&self) -> bool {
        !self
            .include_ranges
            .iter()
            .flatten()
            .any(|net| net.network().is_loopback())
    }

    /// Why an inbound connection is captured, or why not.
    pub fn inbound(&self, port: u16) -> Result<Reason, Reason> {
        let tunnel = port == 15008 && self.mode != InterceptionMode::Tproxy;
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
