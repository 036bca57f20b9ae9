//! A plan in the making.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, btree_map::Entry},
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use sidecar_common::{
    Endpoint, Path, Reason,
    values::{NO_LISTENER, PlanHeader, Rule},
};

use crate::resolve::Finding;

use super::{
    Compiled,
    plan::{Listener, Plan, Target},
};

/// Collects rules. Whatever is put in first stays: callers go from the strongest rule to the
/// weakest.
pub(super) struct Builder {
    plan: Plan,
    groups: HashMap<Vec<Endpoint>, u32>,
    pub findings: Vec<Finding>,
    pub dns: BTreeSet<String>,
}

impl Default for Builder {
    fn default() -> Self {
        let pass = Rule::new(Path::Pass, Reason::NoPlan);
        Self {
            plan: Plan {
                header: PlanHeader {
                    tables: 0,
                    outbound_port: 0,
                    inbound_port: 0,
                    outbound_default: pass,
                    inbound_default: pass,
                },
                outbound: BTreeMap::new(),
                outbound_prefixes: BTreeMap::new(),
                inbound: BTreeMap::new(),
                backends: Vec::new(),
                listeners: Vec::new(),
                listen_ports: BTreeSet::new(),
            },
            groups: HashMap::new(),
            findings: Vec::new(),
            dns: BTreeSet::new(),
        }
    }
}

impl Builder {
    /// The ports of the external proxy.
    pub fn proxy_ports(&mut self, outbound: u16, inbound: u16) {
        self.plan.header.outbound_port = outbound;
        self.plan.header.inbound_port = inbound;
        self.plan.listen_ports.insert(inbound);
    }

    /// Adds a listener; returns its index.
    pub fn listener(&mut self, listener: Listener) -> u32 {
        let index = index(self.plan.listeners.len());
        self.plan.listeners.push(listener);
        index
    }

    /// Adds an outbound rule for one address and port, unless there is one.
    pub fn outbound(&mut self, ip: IpAddr, port: u16, rule: Rule) {
        vacant(&mut self.plan.outbound, endpoint(ip, port), rule);
    }

    /// Adds an inbound rule, unless there is one. An unspecified `ip`: any local address of its
    /// family.
    pub fn inbound(&mut self, ip: IpAddr, port: u16, rule: Rule) {
        vacant(&mut self.plan.inbound, endpoint(ip, port), rule);
    }

    /// The workload may be handed connections on a listening socket of this port.
    pub fn listens_on(&mut self, port: u16) {
        self.plan.listen_ports.insert(port);
    }

    /// Completes a rule of path direct with the endpoints it leads to. None: the connection
    /// keeps its destination.
    pub fn lead_to(&mut self, mut rule: Rule, endpoints: Vec<Endpoint>) -> Rule {
        rule.backends = index(endpoints.len());
        match endpoints[..] {
            [] => {}
            [target] => rule.target = target,
            _ => {
                let next = index(self.plan.backends.len());
                rule.group = match self.groups.entry(endpoints) {
                    std::collections::hash_map::Entry::Occupied(known) => *known.get(),
                    std::collections::hash_map::Entry::Vacant(new) => {
                        self.plan.backends.push(new.key().clone());
                        *new.insert(next)
                    }
                };
            }
        }
        rule
    }

    /// Sets what holds outbound where no exact rule does.
    pub fn outbound_rest(&mut self, prefixes: BTreeMap<(u16, IpNet), Rule>, default: Rule) {
        self.plan.outbound_prefixes = prefixes;
        self.plan.header.outbound_default = default;
    }

    /// Sets what holds inbound where no rule does.
    pub fn inbound_default(&mut self, default: Rule) {
        self.plan.header.inbound_default = default;
    }

    pub fn finish(self) -> Compiled {
        let Self {
            mut plan,
            findings,
            dns,
            ..
        } = self;
        let is_wildcard = |e: &Endpoint| e.addr == e.addr.wildcard();
        let ports = plan.outbound_prefixes.keys();
        for (present, flag) in [
            (!plan.outbound.is_empty(), PlanHeader::HAS_OUTBOUND_EXACT),
            (
                ports.clone().any(|(port, _)| *port != 0),
                PlanHeader::HAS_OUTBOUND_PORT_PREFIX,
            ),
            (
                ports.clone().any(|(port, _)| *port == 0),
                PlanHeader::HAS_OUTBOUND_PREFIX,
            ),
            (
                !plan.inbound.keys().all(is_wildcard),
                PlanHeader::HAS_INBOUND_EXACT,
            ),
            (
                plan.inbound.keys().any(is_wildcard),
                PlanHeader::HAS_INBOUND_PORT,
            ),
        ] {
            if present {
                plan.header.tables |= flag;
            }
        }
        Compiled {
            plan,
            findings,
            dns,
        }
    }
}

/// A rule of a listener; `None`: of none.
pub(super) fn rule(path: Path, reason: Reason, listener: Option<u32>) -> Rule {
    Rule {
        listener: listener.unwrap_or(NO_LISTENER),
        ..Rule::new(path, reason)
    }
}

/// The same rule, but calls of the workload to itself pass.
pub(super) fn exempting_self(rule: Rule) -> Rule {
    Rule {
        flags: rule.flags | Rule::EXEMPT_SELF,
        ..rule
    }
}

/// The endpoints among `targets` that a socket of `ip`'s family can be connected to.
pub(super) fn reachable_from(ip: IpAddr, targets: &[Target]) -> Vec<Endpoint> {
    targets
        .iter()
        .filter_map(|target| match target {
            Target::Tcp(address) if address.is_ipv4() == ip.is_ipv4() => Some((*address).into()),
            Target::Tcp(_) | Target::Unix(_) | Target::Original => None,
        })
        .collect()
}

fn endpoint(ip: IpAddr, port: u16) -> Endpoint {
    Endpoint::from(SocketAddr::new(ip, port))
}

fn vacant<K: Ord>(rules: &mut BTreeMap<K, Rule>, key: K, rule: Rule) {
    if let Entry::Vacant(vacant) = rules.entry(key) {
        vacant.insert(rule);
    }
}

/// An index as the kernel has it. Plans are refused for their size long before this saturates,
/// and a saturated index is `NO_LISTENER`.
fn index(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(NO_LISTENER)
}
