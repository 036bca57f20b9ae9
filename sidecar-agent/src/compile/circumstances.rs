//! What decides besides where a connection is going: who makes it, and by which way.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use ipnet::{IpNet, Ipv6Net};
use sidecar_common::{
    Addr, Path, Reason,
    keys::OwnerKey,
    values::{Interface, PlanHeader, Rule},
};

use super::{network::Network, plan};
use crate::{
    model::{
        failure::{Case, FailurePolicy},
        mesh::{InterceptionMode, MeshConfig},
    },
    resolve::{
        ResolvedWorkload, capture,
        traffic::{Dns, Include, OwnerGroups, Traffic},
        workload::Proxy,
    },
};

/// Where the proxy answers DNS.
const DNS_PORT: u16 = 15053;

/// What decides besides where a connection is going.
pub(super) struct Circumstances {
    /// The header, without the defaults; of its tables those of owners.
    pub header: PlanHeader,
    /// See [`super::Plan::owners`].
    pub owners: BTreeSet<(u32, u32)>,
    /// See [`super::Plan::interfaces`].
    pub interfaces: BTreeMap<String, u32>,
    /// See [`super::Plan::virtual_ranges`].
    pub virtual_ranges: BTreeSet<IpNet>,
}

impl Circumstances {
    /// Those of a workload. Where nothing is captured they do not matter, but for what follows from
    /// its failure policy.
    pub fn of(workload: &ResolvedWorkload, mesh: &MeshConfig) -> Self {
        let traffic = &workload.traffic;
        let mut circumstances = Self::none();
        circumstances.header.flags |= failure_flags(workload.failure);
        if !capture::captures(traffic.mode) {
            return circumstances;
        }
        circumstances.groups(&traffic.owner_groups);
        for name in &traffic.exclude_interfaces {
            circumstances.interface(name, Interface::EXCLUDED, PlanHeader::EXCLUDED_INTERFACES);
            if plan::is_meant(name, Network::LOOPBACK) {
                circumstances.header.flags |= PlanHeader::EXCLUDED_LOOPBACK;
            }
        }
        if let Proxy::External { .. } = workload.proxy {
            circumstances.proxied(traffic, &workload.addresses, mesh);
        }
        circumstances
    }

    fn none() -> Self {
        let pass = Rule::new(Path::Pass, Reason::NoPlan);
        Self {
            header: PlanHeader {
                tables: 0,
                flags: 0,
                outbound_port: 0,
                inbound_port: 0,
                tunnel_port: 0,
                dns_port: 0,
                proxy_uid: 0,
                proxy_gid: 0,
                loopback: 0,
                loopback_mask: 0,
                outbound_default: pass,
                inbound_default: pass,
            },
            owners: BTreeSet::new(),
            interfaces: BTreeMap::new(),
            virtual_ranges: BTreeSet::new(),
        }
    }

    fn groups(&mut self, groups: &OwnerGroups) {
        let (groups, flag) = match groups {
            OwnerGroups::Only(groups) => (groups, PlanHeader::ONLY_GROUPS),
            OwnerGroups::Except(groups) if groups.is_empty() => return,
            OwnerGroups::Except(groups) => (groups, PlanHeader::EXCEPT_GROUPS),
        };
        self.header.flags |= flag;
        self.owners
            .extend(groups.iter().map(|gid| (OwnerKey::GROUP, *gid)));
    }

    fn interface(&mut self, name: &str, what: u32, flag: u32) {
        *self.interfaces.entry(name.to_owned()).or_default() |= what;
        self.header.flags |= flag;
    }

    fn proxied(&mut self, traffic: &Traffic, addresses: &[IpAddr], mesh: &MeshConfig) {
        // A transparent proxy's connections have no ends that are known beforehand.
        let accelerate = traffic.accelerate && traffic.mode == InterceptionMode::Redirect;
        let flags = [
            (true, PlanHeader::PROXIED),
            (traffic.captures_v6(addresses), PlanHeader::IPV6),
            (!traffic.exempts_self(), PlanHeader::LOOPBACK_INCLUDED),
            (traffic.mode == InterceptionMode::Tproxy, PlanHeader::TPROXY),
            (accelerate, PlanHeader::ACCELERATE),
        ];
        let set = flags.into_iter().filter(|(set, _)| *set);
        let header = &mut self.header;
        header.flags |= set.fold(0, |flags, (_, flag)| flags | flag);
        header.outbound_port = mesh.proxy_listen_port;
        header.inbound_port = mesh.proxy_inbound_listen_port;
        header.tunnel_port = traffic.tunnel_port;
        header.dns_port = match traffic.dns {
            Dns::Off => 0,
            Dns::All | Dns::Only(_) => DNS_PORT,
        };
        header.loopback = word(traffic.loopback.network());
        header.loopback_mask = word(traffic.loopback.netmask());
        let ids = |ids: &[u32]| match ids {
            [first, further @ ..] => (*first, further.to_vec()),
            [] => (PlanHeader::NOBODY, Vec::new()),
        };
        let (uid, uids) = ids(&traffic.proxy_uids);
        let (gid, gids) = ids(&traffic.proxy_gids);
        (header.proxy_uid, header.proxy_gid) = (uid, gid);
        for (further, role, table) in [
            (uids, OwnerKey::PROXY_UID, PlanHeader::HAS_PROXY_UIDS),
            (gids, OwnerKey::PROXY_GID, PlanHeader::HAS_PROXY_GIDS),
        ] {
            if !further.is_empty() {
                self.header.tables |= table;
            }
            self.owners.extend(further.iter().map(|id| (role, *id)));
        }
        self.virtual_interfaces(traffic);
    }

    fn virtual_interfaces(&mut self, traffic: &Traffic) {
        for name in &traffic.virtual_interfaces {
            self.interface(name, Interface::VIRTUAL, PlanHeader::VIRTUAL_INTERFACES);
        }
        if traffic.virtual_interfaces.is_empty() {
            return;
        }
        match &traffic.include_ranges {
            Include::All => self.header.flags |= PlanHeader::VIRTUAL_ALL,
            Include::Only(nets) => {
                self.virtual_ranges = nets.iter().flat_map(without_mapped).collect();
            }
        }
    }
}

/// What a plan's header has of a failure policy.
fn failure_flags(policy: FailurePolicy) -> u32 {
    let flags = [
        (Case::ProxyGone, PlanHeader::OPEN_PROXY_GONE),
        (Case::MapFull, PlanHeader::OPEN_MAP_FULL),
        (Case::UnknownWorkload, PlanHeader::OPEN_UNKNOWN),
        (Case::RelayTargetGone, PlanHeader::OPEN_RELAY),
    ];
    let open = flags.into_iter().filter(|(case, _)| policy.is_open(*case));
    open.fold(0, |all, (_, flag)| all | flag)
}

/// An IPv4 address in network order.
fn word(ip: Ipv4Addr) -> u32 {
    Addr::from(IpAddr::V4(ip)).v4()
}

/// The network, less the mapped range of IPv4, which in the kernel's trie is IPv4.
fn without_mapped(net: &IpNet) -> Vec<IpNet> {
    let mapped = Ipv4Addr::UNSPECIFIED.to_ipv6_mapped();
    let IpNet::V6(v6) = net else {
        return vec![*net];
    };
    if !v6.contains(&mapped) {
        return vec![*net];
    }
    // On the way from the network to the range, the other half at each step.
    (v6.prefix_len() + 1..=96)
        .filter_map(|len| {
            let bit = 1_u128.checked_shl(128 - u32::from(len))?;
            let other = (mapped.to_bits() ^ bit).into();
            Some(Ipv6Net::new(other, len).ok()?.trunc().into())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_without_the_mapped_range() {
        let all: IpNet = "::/0".parse().unwrap();
        let nets = without_mapped(&all);
        assert_eq!(nets.len(), 96);
        for (ip, covered) in [
            ("::1", true),
            ("2001:db8::1", true),
            ("::fffe:ffff:ffff", true),
            ("::1:0:0:0", true),
            ("::ffff:0.0.0.0", false),
            ("::ffff:10.0.0.1", false),
        ] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(nets.iter().any(|net| net.contains(&ip)), covered, "{ip}");
        }
        let one: IpNet = "fd00::/8".parse().unwrap();
        assert_eq!(without_mapped(&one), [one]);
    }

    #[test]
    fn each_case_of_a_failure_policy_has_its_own_flag() {
        for (policy, flags) in [
            ("proxy-gone=open", PlanHeader::OPEN_PROXY_GONE),
            ("map-full=open", PlanHeader::OPEN_MAP_FULL),
            ("unknown-workload=open", PlanHeader::OPEN_UNKNOWN),
            ("relay-target-gone=open", PlanHeader::OPEN_RELAY),
            ("closed", 0),
        ] {
            let policy = policy.parse().unwrap();
            assert_eq!(failure_flags(policy), flags, "{policy}");
        }
    }
}
