//! The decision for one connection.
//!
//! All precedence (excluded before included, most specific port first, real listeners before
//! captured services) is settled when a plan is compiled. What is left for the kernel is a fixed
//! walk that the first hit ends:
//!
//! | outbound | inbound |
//! |---|---|
//! | the proxy's own: pass | - |
//! | exact address and port | exact local address and port |
//! | this port, longest prefix | this port on any address |
//! | any port, longest prefix | - |
//! | the plan's default | the plan's default |
//!
//! and then, for rules that say so ([`Rule::EXEMPT_SELF`]), calls of a workload to itself pass.

use crate::{
    addr::{Addr, Endpoint},
    keys::{BackendKey, PlanId, PrefixKey, RuleKey},
    reason::{Path, Reason},
    values::{NO_LISTENER, PlanHeader, Rule},
};

/// Direction of a connection, seen from the workload.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Direction {
    /// The workload connects.
    Outbound = 0,
    /// Somebody connects to the workload.
    Inbound = 1,
}

impl Direction {
    /// The name in output and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// The tables of a plan: BPF maps in the kernel, ordinary collections in user space.
pub trait Tables {
    /// Exact outbound rules.
    fn outbound_exact(&self, key: &RuleKey) -> Option<Rule>;
    /// Prefix rules: the longest prefix covering `key.addr` among entries of `key.plan` and
    /// `key.port`.
    fn outbound_prefix(&self, key: &PrefixKey) -> Option<Rule>;
    /// Inbound rules; `key.dst.addr` may be a wildcard.
    fn inbound(&self, key: &RuleKey) -> Option<Rule>;
    /// One backend of a rule that has several.
    fn backend(&self, key: &BackendKey) -> Option<Endpoint>;
    /// Whether `addr` is one of the workload's own (loopback is not asked for).
    fn is_local(&self, addr: &Addr) -> bool;
    /// Any number: chooses among backends.
    fn random(&self) -> u32;
}

/// What was decided, complete: nothing else has to be looked up to act on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    /// How the connection travels.
    pub path: Path,
    /// [`Reason`] as its number.
    pub reason: u8,
    /// The listener in the plan, or [`NO_LISTENER`].
    pub listener: u32,
    /// Where it goes, for `Path::Direct`. Zero: to where it was going anyway.
    pub target: Endpoint,
}

impl Decision {
    /// A decision that needs no rule.
    #[inline(always)]
    #[must_use]
    pub const fn new(path: Path, reason: Reason) -> Self {
        Self {
            path,
            reason: reason as u8,
            listener: NO_LISTENER,
            target: Endpoint::new(Addr::ANY, 0),
        }
    }
}

/// Decides an outbound connection to `dst`; `from_proxy` says that the proxy itself makes it.
#[inline(always)]
pub fn outbound<T: Tables>(
    tables: &T,
    plan: PlanId,
    header: &PlanHeader,
    dst: &Endpoint,
    from_proxy: bool,
) -> Decision {
    if from_proxy {
        return Decision::new(Path::Pass, Reason::ProxyOwn);
    }
    let rule = outbound_rule(tables, plan, header, dst);
    if rule.flags & Rule::EXEMPT_SELF != 0 {
        if dst.addr.is_loopback() {
            return Decision::new(Path::Pass, Reason::Loopback);
        }
        if tables.is_local(&dst.addr) {
            return Decision::new(Path::Pass, Reason::SelfCall);
        }
    }
    follow(tables, plan, &rule)
}

/// Decides an inbound connection from `src` (address only) to the local endpoint `dst`.
#[inline(always)]
pub fn inbound<T: Tables>(
    tables: &T,
    plan: PlanId,
    header: &PlanHeader,
    src: &Addr,
    dst: &Endpoint,
) -> Decision {
    let rule = inbound_rule(tables, plan, header, dst);
    // A call to one's own address comes from that address unless the caller bound another one.
    if rule.flags & Rule::EXEMPT_SELF != 0
        && (*src == dst.addr || src.is_loopback() || tables.is_local(src))
    {
        return Decision::new(Path::Pass, Reason::SelfCall);
    }
    follow(tables, plan, &rule)
}

#[inline(always)]
fn outbound_rule<T: Tables>(tables: &T, plan: PlanId, header: &PlanHeader, dst: &Endpoint) -> Rule {
    if header.tables & PlanHeader::HAS_OUTBOUND_EXACT != 0
        && let Some(rule) = tables.outbound_exact(&RuleKey { plan, dst: *dst })
    {
        return rule;
    }
    let mut key = PrefixKey {
        plan,
        port: dst.port,
        pad: 0,
        addr: dst.addr,
    };
    if header.tables & PlanHeader::HAS_OUTBOUND_PORT_PREFIX != 0
        && let Some(rule) = tables.outbound_prefix(&key)
    {
        return rule;
    }
    if header.tables & PlanHeader::HAS_OUTBOUND_PREFIX != 0 {
        key.port = 0;
        if let Some(rule) = tables.outbound_prefix(&key) {
            return rule;
        }
    }
    header.outbound_default
}

#[inline(always)]
fn inbound_rule<T: Tables>(tables: &T, plan: PlanId, header: &PlanHeader, dst: &Endpoint) -> Rule {
    let mut key = RuleKey { plan, dst: *dst };
    if header.tables & PlanHeader::HAS_INBOUND_EXACT != 0
        && let Some(rule) = tables.inbound(&key)
    {
        return rule;
    }
    if header.tables & PlanHeader::HAS_INBOUND_PORT != 0 {
        key.dst.addr = dst.addr.wildcard();
        if let Some(rule) = tables.inbound(&key) {
            return rule;
        }
    }
    header.inbound_default
}

/// Turns the rule that matched into a decision: chooses the backend.
#[inline(always)]
fn follow<T: Tables>(tables: &T, plan: PlanId, rule: &Rule) -> Decision {
    let target = if rule.backends > 1 {
        let index = tables.random() % rule.backends;
        match tables.backend(&BackendKey {
            plan,
            group: rule.group,
            index,
        }) {
            Some(target) => target,
            None => return Decision::new(Path::Deny, Reason::PlanIncomplete),
        }
    } else {
        rule.target
    };
    let path = match rule.path {
        0 => Path::Pass,
        1 => Path::Direct,
        2 => Path::Relay,
        3 => Path::Proxy,
        _ => Path::Deny,
    };
    Decision {
        path,
        reason: rule.reason,
        listener: rule.listener,
        target,
    }
}
