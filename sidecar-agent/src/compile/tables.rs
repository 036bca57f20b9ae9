//! A plan's tables in memory: what the kernel has in maps.

use std::{
    cell::Cell,
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sidecar_common::{
    Addr, Endpoint, Path, Reason,
    decide::{Arrival, Tables},
    keys::{BackendKey, OwnerKey, PlanId, PrefixKey, RuleKey},
    values::Rule,
};

use super::{network::Network, plan::Plan};

/// The tables of one plan, for one workload. Plan ids in keys are not looked at.
#[derive(Debug)]
pub struct MemTables<'a> {
    plan: &'a Plan,
    network: Network,
    local: HashSet<Addr>,
    /// The "random" number; [`MemTables::choose`] sets it.
    choice: Cell<u32>,
    arrival: Arrival,
}

impl<'a> MemTables<'a> {
    /// The tables of `plan` for a workload with these addresses, of whose interfaces nothing is
    /// known.
    #[must_use]
    pub fn new(plan: &'a Plan, local: &[IpAddr]) -> Self {
        Self {
            plan,
            network: Network::default(),
            local: local.iter().copied().map(Addr::from).collect(),
            choice: Cell::new(0),
            arrival: Arrival::Ordinary,
        }
    }

    /// The same, with the interfaces of the workload's network namespace. Their addresses are the
    /// workload's, too.
    #[must_use]
    pub fn with_network(mut self, network: Network) -> Self {
        self.local.extend(network.addresses().map(Addr::from));
        self.network = network;
        self
    }

    /// The same, where this was decided for the workload's own connection when it was made.
    #[must_use]
    pub fn with_arrival(self, arrival: Arrival) -> Self {
        Self { arrival, ..self }
    }

    /// The interfaces, as far as they are known.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Sets the number by which a backend is chosen (modulo their number).
    pub fn choose(&self, choice: u32) {
        self.choice.set(choice);
    }
}

/// The value of the longest network that covers the address. In the kernel's trie IPv4 is the mapped
/// range of IPv6: an IPv4 address that no IPv4 network covers falls into an IPv6 network that holds
/// the mapped range.
fn longest<T>(addr: Addr, get: impl Fn(IpNet) -> Option<T>) -> Option<T> {
    let (v4, v6): (Option<Ipv4Addr>, Ipv6Addr) = match IpAddr::from(addr) {
        IpAddr::V4(v4) => (Some(v4), v4.to_ipv6_mapped()),
        IpAddr::V6(v6) => (None, v6),
    };
    let of_v4 = v4.and_then(|v4| {
        (0..=32)
            .rev()
            .find_map(|len| get(Ipv4Net::new(v4, len).ok()?.trunc().into()))
    });
    let longest_v6 = if v4.is_some() { 95 } else { 128 };
    of_v4.or_else(|| {
        (0..=longest_v6)
            .rev()
            .find_map(|len| get(Ipv6Net::new(v6, len).ok()?.trunc().into()))
    })
}

impl Tables for MemTables<'_> {
    fn outbound_exact(&self, key: &RuleKey) -> Option<Rule> {
        self.plan.outbound.exact.get(&key.dst).copied()
    }

    fn outbound_prefix(&self, key: &PrefixKey) -> Option<Rule> {
        longest(key.addr, |net| match key.table {
            PrefixKey::VIRTUAL => self
                .plan
                .virtual_ranges
                .contains(&net)
                .then(|| Rule::new(Path::Proxy, Reason::VirtualInterface)),
            _ => self.plan.outbound.prefixes.get(&(key.port, net)).copied(),
        })
    }

    fn inbound(&self, key: &RuleKey) -> Option<Rule> {
        self.plan.inbound.get(&key.dst).copied()
    }

    fn backend(&self, key: &BackendKey) -> Option<Endpoint> {
        let group = self
            .plan
            .outbound
            .backends
            .get(usize::try_from(key.group).ok()?)?;
        group.get(usize::try_from(key.index).ok()?).copied()
    }

    fn is_local(&self, addr: &Addr) -> bool {
        self.local.contains(addr)
    }

    fn random(&self) -> u32 {
        self.choice.get()
    }

    fn owner(&self, key: &OwnerKey) -> bool {
        self.plan.owners.contains(&(key.role, key.id))
    }

    fn egress(&self, _plan: PlanId, dst: &Addr) -> u32 {
        let interface = self.network.towards((*dst).into());
        interface.map_or(0, |name| self.plan.interface(name))
    }

    fn ingress(&self, _plan: PlanId, index: u32) -> u32 {
        let name = self.network.name(index);
        name.map_or(0, |name| self.plan.interface(name))
    }

    fn arrival(&self, _client: &Endpoint, _server: &Endpoint) -> Arrival {
        self.arrival
    }
}
