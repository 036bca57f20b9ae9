//! The halves of a plan in the making. Whatever is put in first stays: callers go from the
//! strongest rule to the weakest.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;
use sidecar_common::{
    Endpoint, Path, Reason,
    values::{NO_LISTENER, PlanHeader, Rule},
};

use crate::{model::ResourceRef, resolve::Finding};

use super::{
    circumstances::Circumstances,
    plan::{Listener, Outbound, Plan, Target},
};

/// The outbound half.
#[derive(Default)]
pub(super) struct OutboundBuilder {
    /// In the order they were put in.
    exact: Vec<(Endpoint, Rule)>,
    backends: Vec<Vec<Endpoint>>,
    groups: HashMap<Vec<Endpoint>, u32>,
    listeners: Vec<Listener>,
    /// What was found; of the Sidecar where no resource is named.
    pub findings: Vec<Finding>,
    pub dns: BTreeSet<String>,
}

/// The inbound half.
pub(super) struct InboundBuilder {
    /// Listeners of the outbound half, which are counted before those of this one.
    before: usize,
    rules: BTreeMap<Endpoint, Rule>,
    listeners: Vec<Listener>,
    default: Rule,
    listen_ports: BTreeSet<u16>,
    pub findings: Vec<Finding>,
}

impl OutboundBuilder {
    /// Adds a listener; returns its index.
    pub fn listener(&mut self, listener: Listener) -> u32 {
        push(&mut self.listeners, listener)
    }

    /// Adds a rule for one address and port, unless there is one.
    pub fn rule(&mut self, ip: IpAddr, port: u16, rule: Rule) {
        self.exact.push((endpoint(ip, port), rule));
    }

    /// Completes a rule of path direct with the endpoints it leads to. None: the connection
    /// keeps its destination.
    pub fn lead_to(&mut self, mut rule: Rule, endpoints: Vec<Endpoint>) -> Rule {
        rule.backends = index(endpoints.len());
        match endpoints[..] {
            [] => {}
            [target] => rule.target = target,
            _ => {
                let next = index(self.backends.len());
                rule.group = match self.groups.entry(endpoints) {
                    hash_map::Entry::Occupied(known) => *known.get(),
                    hash_map::Entry::Vacant(new) => {
                        self.backends.push(new.key().clone());
                        *new.insert(next)
                    }
                };
            }
        }
        rule
    }

    /// Completes the half with what holds where no exact rule does.
    pub fn finish(self, prefixes: BTreeMap<(u16, IpNet), Rule>, default: Rule) -> Compiled {
        let mut listeners = self.listeners;
        // They stay as they are, and there may be thousands of them.
        listeners.shrink_to_fit();
        // Of equal keys the last one stays.
        let exact = self.exact.into_iter().rev().collect();
        let outbound = Outbound::new(default, exact, prefixes, self.backends, listeners);
        Compiled {
            outbound: Arc::new(outbound),
            findings: self.findings,
            dns: self.dns,
        }
    }
}

/// What compiling an outbound half yields.
#[derive(Clone, Debug)]
pub(super) struct Compiled {
    /// The half.
    pub outbound: Arc<Outbound>,
    /// What was found on the way; of the Sidecar where no resource is named.
    pub findings: Vec<Finding>,
    /// Host names whose addresses it depends on.
    pub dns: BTreeSet<String>,
}

impl InboundBuilder {
    /// The inbound half that goes with this outbound one.
    pub fn new(outbound: &Outbound) -> Self {
        Self {
            before: outbound.listeners.len(),
            rules: BTreeMap::new(),
            listeners: Vec::new(),
            default: Rule::new(Path::Pass, Reason::NoPlan),
            listen_ports: BTreeSet::new(),
            findings: Vec::new(),
        }
    }

    /// Adds a listener; returns its index.
    pub fn listener(&mut self, listener: Listener) -> u32 {
        index(self.before).saturating_add(push(&mut self.listeners, listener))
    }

    /// Adds a rule, unless there is one. An unspecified `ip`: any local address of its family.
    pub fn rule(&mut self, ip: IpAddr, port: u16, rule: Rule) {
        self.rules.entry(endpoint(ip, port)).or_insert(rule);
    }

    /// The workload may be handed connections on a listening socket of this port.
    pub fn listens_on(&mut self, port: u16) {
        self.listen_ports.insert(port);
    }

    /// Sets what holds where no rule does.
    pub fn default(&mut self, default: Rule) {
        self.default = default;
    }

    /// The plan of both halves.
    pub fn finish(
        self,
        outbound: Arc<Outbound>,
        sidecar: Option<ResourceRef>,
        circumstances: Circumstances,
    ) -> (Plan, Vec<Finding>) {
        let Self {
            before: _,
            rules: inbound,
            listeners: inbound_listeners,
            default: inbound_default,
            mut listen_ports,
            findings,
        } = self;
        let Circumstances {
            header,
            owners,
            interfaces,
            virtual_ranges,
        } = circumstances;
        if header.flags & PlanHeader::PROXIED != 0 {
            listen_ports.extend([header.outbound_port, header.inbound_port]);
        }
        let header = PlanHeader {
            tables: header.tables | tables(&outbound, &inbound),
            outbound_default: outbound.default,
            inbound_default,
            ..header
        };
        let plan = Plan {
            header,
            outbound,
            inbound,
            inbound_listeners,
            listen_ports,
            owners,
            interfaces,
            virtual_ranges,
            sidecar,
        };
        (plan, findings)
    }
}

/// Which tables have entries.
fn tables(outbound: &Outbound, inbound: &BTreeMap<Endpoint, Rule>) -> u32 {
    let is_wildcard = |e: &Endpoint| e.addr == e.addr.wildcard();
    let any_port = |(port, _): &(u16, IpNet)| *port == 0;
    let present = [
        (!outbound.exact.is_empty(), PlanHeader::HAS_OUTBOUND_EXACT),
        (
            !outbound.prefixes.keys().all(any_port),
            PlanHeader::HAS_OUTBOUND_PORT_PREFIX,
        ),
        (
            outbound.prefixes.keys().any(any_port),
            PlanHeader::HAS_OUTBOUND_PREFIX,
        ),
        (
            !inbound.keys().all(is_wildcard),
            PlanHeader::HAS_INBOUND_EXACT,
        ),
        (
            inbound.keys().any(is_wildcard),
            PlanHeader::HAS_INBOUND_PORT,
        ),
    ];
    let flags = present.into_iter().filter(|(present, _)| *present);
    flags.fold(0, |tables, (_, flag)| tables | flag)
}

/// A rule of a listener; `None`: of none.
pub(super) fn rule(path: Path, reason: Reason, listener: Option<u32>) -> Rule {
    Rule {
        listener: listener.unwrap_or(NO_LISTENER),
        ..Rule::new(path, reason)
    }
}

/// A rule of path direct that leads to this endpoint.
pub(super) fn leading_to(rule: Rule, target: Endpoint) -> Rule {
    Rule {
        backends: 1,
        target,
        ..rule
    }
}

/// The same rule, but calls of the workload to itself pass.
pub(super) fn exempting_self(rule: Rule) -> Rule {
    Rule {
        flags: rule.flags | Rule::EXEMPT_SELF,
        ..rule
    }
}

/// The same rule, but it decides before it matters who calls.
pub(super) fn first(rule: Rule) -> Rule {
    Rule {
        flags: rule.flags | Rule::FIRST,
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

fn push(listeners: &mut Vec<Listener>, listener: Listener) -> u32 {
    let index = index(listeners.len());
    listeners.push(listener);
    index
}

/// An index as the kernel has it. Plans are refused for their size long before this saturates,
/// and a saturated index is `NO_LISTENER`.
fn index(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(NO_LISTENER)
}
