//! Prefix rules: what is captured and exempt by network, settled so that the longest prefix
//! gives what `istio-iptables` decides by order.
//!
//! Order: excluded port, DNS that is captured, excluded network, included port, included network.
//! The kernel looks under the connection's port first and then under "any port", and takes the
//! longest prefix. So: an included network within an excluded one is left out; and a port that has
//! rules of its own repeats the excluded networks.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sidecar_common::{Path, Reason, values::Rule};

use crate::resolve::traffic::{Dns, Include, Traffic};

use super::builder::{first, rule};

/// The port of DNS.
const DNS_PORT: u16 = 53;

/// Everything, per family.
pub(crate) const EVERYWHERE: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
];

/// Collects prefix rules. What is added first stays.
pub(super) struct Prefixes<'a> {
    traffic: &'a Traffic,
    exempt: Vec<(IpNet, Rule)>,
    rules: BTreeMap<(u16, IpNet), Rule>,
}

impl<'a> Prefixes<'a> {
    /// Those of a workload without a proxy.
    pub fn new(traffic: &'a Traffic) -> Self {
        Self::exempting(traffic, traffic.exempt_ranges())
    }

    /// Those of a workload with a proxy, where loopback is decided by who calls.
    pub fn of_proxied(traffic: &'a Traffic) -> Self {
        Self::exempting(traffic, traffic.excluded_ranges())
    }

    fn exempting(traffic: &'a Traffic, ranges: impl Iterator<Item = (IpNet, Reason)>) -> Self {
        let exempt = ranges
            .map(|(net, reason)| (net, rule(Path::Pass, reason, None)))
            .collect();
        Self {
            traffic,
            exempt,
            rules: BTreeMap::new(),
        }
    }

    /// Adds a rule for a port and a network, as far as that is captured at all.
    pub fn add(&mut self, port: u16, net: IpNet, rule: Rule) {
        if self.traffic.exclude_outbound.contains(&port) {
            return;
        }
        match &self.traffic.include_ranges {
            Include::Only(nets) if !self.traffic.include_outbound.contains(&port) => {
                for included in nets {
                    if net.contains(included) {
                        self.insert(port, *included, rule);
                    } else if included.contains(&net) {
                        self.insert(port, net, rule);
                    }
                }
            }
            _ => self.insert(port, net, rule),
        }
    }

    /// Adds the lists themselves and returns all rules and the default. `captured` gives the
    /// rule for what is captured for a reason, and is no service's.
    pub fn finish(
        mut self,
        captured: impl Fn(Reason) -> Rule,
    ) -> (BTreeMap<(u16, IpNet), Rule>, Rule) {
        let traffic = self.traffic;
        let default = match &traffic.include_ranges {
            Include::All => captured(Reason::CaptureAll),
            Include::Only(nets) => {
                for port in traffic
                    .include_outbound
                    .difference(&traffic.exclude_outbound)
                {
                    for net in EVERYWHERE {
                        self.insert(*port, net, captured(Reason::IncludedPort));
                    }
                }
                for net in nets {
                    self.insert(0, *net, captured(Reason::IncludedRange));
                }
                rule(Path::Pass, Reason::NotIncluded, None)
            }
        };
        let ports: BTreeSet<u16> = self
            .rules
            .keys()
            .map(|(port, _)| *port)
            .chain([0])
            .collect();
        for port in ports {
            self.rules
                .extend(self.exempt.iter().map(|(net, rule)| ((port, *net), *rule)));
        }
        self.capture_dns();
        for port in &traffic.exclude_outbound {
            for net in EVERYWHERE {
                let excluded = rule(Path::Pass, Reason::ExcludedPort, None);
                self.rules.insert((*port, net), first(excluded));
            }
        }
        self.separate_families(default);
        (self.rules, default)
    }

    /// DNS that is captured, whatever the networks.
    fn capture_dns(&mut self) {
        if self.traffic.exclude_outbound.contains(&DNS_PORT) {
            return;
        }
        let dns = rule(Path::Proxy, Reason::Dns, None);
        match &self.traffic.dns {
            Dns::Off => {}
            Dns::All => {
                self.rules.retain(|(port, _), _| *port != DNS_PORT);
                let everywhere = EVERYWHERE.map(|net| ((DNS_PORT, net), dns));
                self.rules.extend(everywhere);
            }
            Dns::Only(servers) => {
                let servers = servers.iter().map(|ip| ((DNS_PORT, (*ip).into()), dns));
                self.rules.extend(servers);
            }
        }
    }

    /// As [`Self::finish`], but what is captured has one rule for IPv4 and another for IPv6.
    pub fn finish_by_family(self, [v4, v6]: [Rule; 2]) -> (BTreeMap<(u16, IpNet), Rule>, Rule) {
        let (mut prefixes, default) = self.finish(|_| v4);
        let of = |net: &IpNet| if net.addr().is_ipv4() { v4 } else { v6 };
        for ((_, net), rule) in &mut prefixes {
            if *rule == v4 {
                *rule = of(net);
            }
        }
        if default == v4 {
            for net in EVERYWHERE {
                prefixes.entry((0, net)).or_insert(of(&net));
            }
        }
        (prefixes, default)
    }

    /// Inserts a rule unless its network is exempt, or has one.
    fn insert(&mut self, port: u16, net: IpNet, rule: Rule) {
        if !self.exempt.iter().any(|(exempt, _)| exempt.contains(&net)) {
            self.rules.entry((port, net)).or_insert(rule);
        }
    }

    /// In the kernel's trie IPv4 is the mapped range of IPv6, so that a short IPv6 network such
    /// as `::/0` covers it. Where a port has such a network and nothing for all of IPv4, the
    /// IPv4 side gets what it would fall through to.
    fn separate_families(&mut self, default: Rule) {
        let [v4, _] = EVERYWHERE;
        let mapped = Ipv6Net::new_assert(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(), 96);
        let reaches_v4 = |net: &IpNet| matches!(net, IpNet::V6(v6) if v6.contains(&mapped));
        let ports: BTreeSet<u16> = self
            .rules
            .keys()
            .filter(|(port, net)| reaches_v4(net) && !self.rules.contains_key(&(*port, v4)))
            .map(|(port, _)| *port)
            .collect();
        let any_port: Vec<(IpNet, Rule)> = self
            .rules
            .range((0, v4)..)
            .take_while(|((port, _), _)| *port == 0)
            .filter(|((_, net), _)| v4.contains(net))
            .map(|((_, net), rule)| (*net, *rule))
            .collect();
        for port in ports {
            let own: Vec<IpNet> = self
                .rules
                .range((port, v4)..)
                .take_while(|((p, net), _)| *p == port && v4.contains(net))
                .map(|((_, net), _)| *net)
                .collect();
            for (net, rule) in any_port.iter().chain([&(v4, default)]) {
                if !own.iter().any(|own| own.contains(net)) {
                    self.rules.entry((port, *net)).or_insert(*rule);
                }
            }
        }
    }
}
