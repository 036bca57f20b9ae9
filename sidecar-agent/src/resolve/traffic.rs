//! What a workload's annotations capture and exempt.
//!
//! The annotations, their defaults and their order are those of Istio's injector, CNI plugin and
//! `istio-iptables`; the `capture.sidecar-agent.io` ones are ours.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use sidecar_common::Reason;

use crate::model::{mesh::InterceptionMode, workload::PROXY_UID_ANNOTATION};

use super::{capture, registry::canonical};

pub(super) const INCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/includeInboundPorts";
pub(super) const EXCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeInboundPorts";
pub(super) const INCLUDE_OUTBOUND_RANGES: &str = "traffic.sidecar.istio.io/includeOutboundIPRanges";
pub(super) const EXCLUDE_OUTBOUND_RANGES: &str = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
pub(super) const INCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/includeOutboundPorts";
pub(super) const EXCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeOutboundPorts";
pub(super) const INTERCEPTION_MODE: &str = "sidecar.istio.io/interceptionMode";
pub(super) const STATUS_PORT: &str = "status.sidecar.istio.io/port";

/// The proxy's uid unless said otherwise.
const DEFAULT_PROXY_UID: u32 = 1337;
/// The port of the agent's merged metrics and health.
const DEFAULT_STATUS_PORT: u16 = 15020;
/// The tunnel port: never captured in mode REDIRECT.
const TUNNEL_PORT: u16 = 15008;

/// Everything, or a list.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Include<T> {
    /// `*`.
    All,
    /// These.
    Only(T),
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
    /// The interception mode.
    pub mode: InterceptionMode,
    /// The port of the proxy's merged metrics and health, exempt inbound; 0: none.
    pub status_port: u16,
    /// The proxy's uid.
    pub proxy_uid: u32,
}

/// An annotation, or one element of it, that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadAnnotation {
    /// The annotation.
    pub annotation: &'static str,
    /// What was written.
    pub value: String,
    /// What can be written.
    pub expected: &'static str,
}

impl Traffic {
    /// Reads the annotations. What cannot be used is reported and left out; the rest holds.
    #[must_use]
    pub fn read(
        annotations: &BTreeMap<String, String>,
        default_mode: InterceptionMode,
    ) -> (Self, Vec<BadAnnotation>) {
        let mut reader = Reader {
            annotations,
            bad: Vec::new(),
        };
        let mode = reader
            .value(INTERCEPTION_MODE, "REDIRECT, TPROXY or NONE", |text| {
                // Istio takes an empty one for the default.
                if text.is_empty() {
                    Some(default_mode)
                } else {
                    capture::interception_mode(text)
                }
            })
            .unwrap_or(default_mode);
        let status_port = reader
            .value(STATUS_PORT, "a port, or 0 for none", |t| t.parse().ok())
            .unwrap_or(DEFAULT_STATUS_PORT);
        let mut exclude_inbound = reader.ports(EXCLUDE_INBOUND_PORTS);
        exclude_inbound.extend(capture::STATUS_PORTS);
        exclude_inbound.extend(Some(status_port).filter(|port| *port != 0));
        let traffic = Self {
            include_inbound: reader
                .include(INCLUDE_INBOUND_PORTS, |r| r.ports(INCLUDE_INBOUND_PORTS)),
            exclude_inbound,
            include_ranges: reader.include(INCLUDE_OUTBOUND_RANGES, |r| {
                r.ranges(INCLUDE_OUTBOUND_RANGES)
            }),
            exclude_ranges: reader.ranges(EXCLUDE_OUTBOUND_RANGES),
            include_outbound: reader.ports(INCLUDE_OUTBOUND_PORTS),
            exclude_outbound: reader.ports(EXCLUDE_OUTBOUND_PORTS),
            mode,
            status_port,
            proxy_uid: reader
                .value(PROXY_UID_ANNOTATION, "a user id", |text| text.parse().ok())
                .unwrap_or(DEFAULT_PROXY_UID),
        };
        (traffic, reader.bad)
    }

    /// The same outbound, and nothing said of what is inbound or the proxy's.
    #[must_use]
    pub fn outbound_only(&self) -> Self {
        Self {
            include_inbound: Include::All,
            exclude_inbound: BTreeSet::new(),
            status_port: 0,
            proxy_uid: 0,
            ..self.clone()
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
        let tunnel = Some(TUNNEL_PORT).filter(|port| self.always_exempt_inbound(*port));
        self.exclude_inbound.iter().copied().chain(tunnel)
    }

    /// Whether an inbound port is exempt whatever the annotations say.
    #[must_use]
    pub fn is_always_exempt(&self, port: u16) -> bool {
        capture::STATUS_PORTS.contains(&port) || self.always_exempt_inbound(port)
    }

    /// In mode TPROXY the tunnel port is captured like any other.
    fn always_exempt_inbound(&self, port: u16) -> bool {
        port == TUNNEL_PORT && self.mode == InterceptionMode::Redirect
    }

    /// Outbound networks that are exempt whatever includes them.
    pub fn exempt_ranges(&self) -> impl Iterator<Item = (IpNet, Reason)> + '_ {
        // With captured loopback networks, 127.0.0.1 and ::1 themselves still are not captured.
        let loopbacks = [
            IpNet::from(IpAddr::from([127, 0, 0, 1])),
            IpNet::from(LOCALHOST_V6),
        ];
        let loopbacks = loopbacks.into_iter().filter(|_| !self.exempts_self());
        let excluded = self
            .exclude_ranges
            .iter()
            .map(|net| (*net, Reason::ExcludedRange));
        loopbacks.map(|net| (net, Reason::Loopback)).chain(excluded)
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

const LOCALHOST_V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);

struct Reader<'a> {
    annotations: &'a BTreeMap<String, String>,
    bad: Vec<BadAnnotation>,
}

impl Reader<'_> {
    fn value<T>(
        &mut self,
        annotation: &'static str,
        expected: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let text = self.annotations.get(annotation)?.trim();
        let value = parse(text);
        if value.is_none() {
            self.bad.push(BadAnnotation {
                annotation,
                value: text.to_owned(),
                expected,
            });
        }
        value
    }

    /// The elements of a list; empty ones are skipped.
    fn list<T: Ord>(
        &mut self,
        annotation: &'static str,
        expected: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> BTreeSet<T> {
        let mut elements = BTreeSet::new();
        let text = self.annotations.get(annotation).map_or("", String::as_str);
        for text in text
            .split(',')
            .map(str::trim)
            .filter(|text| !text.is_empty())
        {
            match parse(text) {
                Some(element) => _ = elements.insert(element),
                None => {
                    self.bad.push(BadAnnotation {
                        annotation,
                        value: text.to_owned(),
                        expected,
                    });
                }
            }
        }
        elements
    }

    fn ports(&mut self, annotation: &'static str) -> BTreeSet<u16> {
        self.list(annotation, "ports, separated by commas", |text| {
            text.parse().ok()
        })
    }

    fn ranges(&mut self, annotation: &'static str) -> BTreeSet<IpNet> {
        self.list(
            annotation,
            "networks such as 10.0.0.0/8, separated by commas",
            |text| text.parse().ok().map(|net| canonical(&net)),
        )
    }

    fn include<T>(
        &mut self,
        annotation: &'static str,
        read: impl FnOnce(&mut Self) -> T,
    ) -> Include<T> {
        match self.annotations.get(annotation).map(|text| text.trim()) {
            None | Some("*") => Include::All,
            Some(_) => Include::Only(read(self)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(annotations: &[(&str, &str)]) -> (Traffic, Vec<BadAnnotation>) {
        let annotations = annotations
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        Traffic::read(&annotations, InterceptionMode::Redirect)
    }

    #[test]
    fn defaults_are_those_of_the_injector() {
        let (traffic, bad) = read(&[]);
        assert!(bad.is_empty());
        assert_eq!(traffic.include_inbound, Include::All);
        assert_eq!(traffic.exclude_inbound, [15020, 15021, 15090].into());
        assert_eq!(traffic.include_ranges, Include::All);
        assert_eq!(traffic.proxy_uid, 1337);
        assert_eq!(traffic.inbound(15008), Err(Reason::ExcludedPort));
        assert_eq!(traffic.inbound(22), Ok(Reason::CaptureAll));
        let (traffic, _) = read(&[(STATUS_PORT, "0"), (INTERCEPTION_MODE, "TPROXY")]);
        assert_eq!(traffic.exclude_inbound, [15021, 15090].into());
        assert_eq!(traffic.inbound(15008), Ok(Reason::CaptureAll));
    }

    #[test]
    fn an_empty_list_is_not_an_absent_one() {
        let (traffic, _) = read(&[(INCLUDE_OUTBOUND_RANGES, ""), (INCLUDE_INBOUND_PORTS, "")]);
        assert_eq!(
            traffic.outbound([10, 0, 0, 1].into(), 80),
            Err(Reason::NotIncluded)
        );
        assert_eq!(traffic.inbound(80), Err(Reason::NotIncluded));
    }

    #[test]
    fn outbound_order() {
        let (traffic, bad) = read(&[
            (INCLUDE_OUTBOUND_RANGES, "10.96.0.0/12, ,192.168.7.9/16,"),
            (EXCLUDE_OUTBOUND_RANGES, "10.96.5.0/24"),
            (INCLUDE_OUTBOUND_PORTS, "8443,9443"),
            (EXCLUDE_OUTBOUND_PORTS, "9443"),
        ]);
        assert_eq!(bad, []);
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
        let (traffic, bad) = read(&[
            (EXCLUDE_OUTBOUND_PORTS, "80,x,70000"),
            (EXCLUDE_OUTBOUND_RANGES, "*,10.0.0.0/8"),
            (INTERCEPTION_MODE, "redirect"),
            (PROXY_UID_ANNOTATION, "-1"),
        ]);
        let values: Vec<_> = bad.iter().map(|bad| bad.value.as_str()).collect();
        assert_eq!(values, ["redirect", "*", "x", "70000", "-1"]);
        assert_eq!(traffic.exclude_outbound, [80].into());
        assert_eq!(traffic.exclude_ranges.len(), 1);
        assert_eq!(traffic.mode, InterceptionMode::Redirect);
    }
}
