//! A plan's tables in memory: what the kernel has in maps.

use std::{
    cell::Cell,
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sidecar_common::{
    Addr, Endpoint,
    decide::Tables,
    keys::{BackendKey, PrefixKey, RuleKey},
    values::Rule,
};

use super::plan::Plan;

/// The tables of one plan, for one workload. Plan ids in keys are not looked at.
#[derive(Debug)]
pub struct MemTables<'a> {
    plan: &'a Plan,
    local: HashSet<Addr>,
    /// The "random" number; [`MemTables::choose`] sets it.
    choice: Cell<u32>,
}

impl<'a> MemTables<'a> {
    /// The tables of `plan` for a workload with these addresses.
    #[must_use]
    pub fn new(plan: &'a Plan, local: &[IpAddr]) -> Self {
        Self {
            plan,
            local: local.iter().copied().map(Addr::from).collect(),
            choice: Cell::new(0),
        }
    }

    /// Sets the number by which a backend is chosen (modulo their number).
    pub fn choose(&self, choice: u32) {
        self.choice.set(choice);
    }

    fn prefix(&self, port: u16, net: impl Into<IpNet>) -> Option<Rule> {
        self.plan
            .outbound
            .prefixes
            .get(&(port, net.into()))
            .copied()
    }
}

impl Tables for MemTables<'_> {
    fn outbound_exact(&self, key: &RuleKey) -> Option<Rule> {
        self.plan.outbound.exact.get(&key.dst).copied()
    }

    fn outbound_prefix(&self, key: &PrefixKey) -> Option<Rule> {
        // In the kernel's trie IPv4 is the mapped range of IPv6: an IPv4 address that no IPv4
        // network covers falls into an IPv6 network that holds the mapped range.
        let (v4, v6): (Option<Ipv4Addr>, Ipv6Addr) = match IpAddr::from(key.addr) {
            IpAddr::V4(v4) => (Some(v4), v4.to_ipv6_mapped()),
            IpAddr::V6(v6) => (None, v6),
        };
        let v4_rule = v4.and_then(|v4| {
            (0..=32)
                .rev()
                .find_map(|len| self.prefix(key.port, Ipv4Net::new(v4, len).ok()?.trunc()))
        });
        let longest_v6 = if v4.is_some() { 95 } else { 128 };
        v4_rule.or_else(|| {
            (0..=longest_v6)
                .rev()
                .find_map(|len| self.prefix(key.port, Ipv6Net::new(v6, len).ok()?.trunc()))
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
}
