//! The decision for one connection.
//!
//! Most precedence (excluded before included, most specific port first, real listeners before
//! captured services) is settled when a plan is compiled. What is left for the kernel is a fixed
//! walk that the first hit ends:
//!
//! | outbound | inbound |
//! |---|---|
//! | exact address and port | exact local address and port |
//! | this port, longest prefix | this port on any address |
//! | any port, longest prefix | - |
//! | the plan's default | the plan's default |
//!
//! and what cannot be in a table, since it depends on who calls and by which way: excluded and
//! virtual interfaces, the proxy's own connections, calls of a workload to itself, owner groups.
//! For workloads with a proxy these follow the order of `istio-iptables`.
//!
//! What becomes of a connection when something fails is decided here as well: [`without_plan`],
//! [`proxy_gone`], and `PlanHeader::REFUSES`.

use crate::{
    addr::{Addr, Endpoint},
    keys::{BackendKey, OwnerKey, PlanId, PrefixKey, RuleKey},
    reason::{Path, Reason},
    values::{Interface, NO_LISTENER, PlanHeader, Rule, Word},
};

/// The port of DNS.
const DNS_PORT: u16 = 53;

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
    /// Whether the plan lists this owner.
    fn owner(&self, key: &OwnerKey) -> bool;
    /// What the interface is by which `dst` is reached, as the plan has it: `Interface::EXCLUDED`
    /// and so on.
    fn egress(&self, plan: PlanId, dst: &Addr) -> u32;
    /// What the interface with this index is, as the plan has it.
    fn ingress(&self, plan: PlanId, index: u32) -> u32;
    /// What was decided for the workload's own connection between these two when it was made.
    fn arrival(&self, client: &Endpoint, server: &Endpoint) -> Arrival;
}

/// The transport of a call.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// TCP, or MPTCP.
    Tcp = 0,
    /// UDP: captured for DNS only.
    Udp = 1,
}

impl Transport {
    /// The name in output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A process of a workload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    /// Its user, in the workload's user namespace.
    pub uid: u32,
    /// Its group, in the workload's user namespace.
    pub gid: u32,
    /// It is in the proxy's own cgroup.
    pub in_proxy_cgroup: bool,
}

/// What a workload calls, and who in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutboundCall {
    /// Where it is going.
    pub dst: Endpoint,
    /// The address that the socket is bound to, or a wildcard.
    pub src: Addr,
    /// The transport.
    pub transport: Transport,
    /// Who calls.
    pub caller: Caller,
    /// The socket is bound to an interface (`SO_BINDTODEVICE`).
    pub bound_device: bool,
}

/// What arrives at a workload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InboundCall {
    /// Where it comes from.
    pub src: Endpoint,
    /// The local endpoint it is going to.
    pub dst: Endpoint,
    /// The index of the interface it arrives by.
    pub interface: u32,
}

/// What becomes of a workload's connection to itself where it arrives: only a transparent proxy's
/// are not ordinary.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arrival {
    /// As any other.
    Ordinary,
    /// It passes, although it comes from an address that is not the workload's.
    Passes,
    /// The proxy's inbound listener takes it, although it comes from the workload.
    Captured,
}

/// What was decided, complete: nothing else has to be looked up to act on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    /// How the connection travels.
    pub path: Path,
    /// [`Reason`] as its number.
    pub reason: u8,
    /// What becomes of it where it arrives; outbound only.
    pub arrival: Arrival,
    /// The proxy's port, for `Path::Proxy`. Zero: the connection keeps its destination, and is
    /// [`Arrival::Captured`] there.
    pub proxy_port: u16,
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
            arrival: Arrival::Ordinary,
            proxy_port: 0,
            listener: NO_LISTENER,
            target: Endpoint::new(Addr::ANY, 0),
        }
    }

    #[inline(always)]
    const fn pass(reason: Reason) -> Self {
        Self::new(Path::Pass, reason)
    }

    #[inline(always)]
    const fn proxy(reason: Reason, port: u16) -> Self {
        Self {
            proxy_port: port,
            ..Self::new(Path::Proxy, reason)
        }
    }

    /// Whether the connection is led to a loopback address.
    #[inline(always)]
    const fn leads_to_loopback(&self) -> bool {
        match self.path {
            Path::Relay => true,
            Path::Proxy => self.proxy_port != 0,
            Path::Direct => self.target.port != 0 && self.target.addr.is_loopback(),
            Path::Pass | Path::Deny => false,
        }
    }
}

/// What becomes of what is new when the plan that a workload follows is not in the maps.
#[inline(always)]
#[must_use]
pub const fn without_plan(word: Word) -> Decision {
    missing(word.is_open())
}

/// What becomes of a connection, or datagram, that the proxy was to get, while it does not listen.
///
/// Outbound by TCP, the kernel refuses what is led to a port where nobody listens: this need not be
/// asked for unless the policy is open.
#[inline(always)]
#[must_use]
pub const fn proxy_gone(header: &PlanHeader, decision: &Decision) -> Decision {
    // What arrives by a virtual interface was going elsewhere: here it has no other place.
    let has_place = decision.reason != Reason::VirtualInterface as u8;
    if has_place && header.flags & PlanHeader::OPEN_PROXY_GONE != 0 {
        Decision::pass(Reason::ProxyGone)
    } else {
        Decision::new(Path::Deny, Reason::TargetNotListening)
    }
}

/// An entry that has to be there is not.
#[inline(always)]
const fn missing(open: bool) -> Decision {
    if open {
        Decision::pass(Reason::PlanIncompleteOpen)
    } else {
        Decision::new(Path::Deny, Reason::PlanIncomplete)
    }
}

/// Whether datagrams to this port have to be decided at all; all others pass.
#[inline(always)]
#[must_use]
pub const fn concerns_datagrams(header: &PlanHeader, port: u16) -> bool {
    header.dns_port != 0 && port == DNS_PORT
}

/// Decides an outbound connection, or datagram (see [`concerns_datagrams`]).
#[inline(always)]
pub fn outbound<T: Tables>(
    tables: &T,
    plan: PlanId,
    header: &PlanHeader,
    call: &OutboundCall,
) -> Decision {
    let mut call = *call;
    // To call nobody in particular is to call oneself.
    if call.dst.addr.is_wildcard() {
        call.dst.addr = call.dst.addr.loopback();
    }
    if header.flags & PlanHeader::REFUSES != 0 {
        return refused(tables, plan, header, &call);
    }
    // It leaves by `lo`, whose interface ever has the address. Where this decides nothing, or only by
    // what a rule says, it is not looked up here.
    let needs_over_lo = header.flags & (PlanHeader::EXCLUDED_INTERFACES | PlanHeader::PROXIED) != 0;
    let over_lo = needs_over_lo && is_own(tables, &call.dst.addr);
    let is_excluded = if header.flags & PlanHeader::EXCLUDED_INTERFACES == 0 {
        false
    } else if over_lo {
        header.flags & PlanHeader::EXCLUDED_LOOPBACK != 0
    } else {
        tables.egress(plan, &call.dst.addr) & Interface::EXCLUDED != 0
    };
    // A call to `::6` comes from there by itself, as it is an address of `lo`.
    if call.src.is_wildcard() && call.dst.addr == Addr::PASSTHROUGH_V6 {
        call.src = call.dst.addr;
    }
    let decision = if header.flags & PlanHeader::PROXIED == 0 {
        let over_lo = needs_over_lo.then_some(over_lo);
        direct(tables, plan, header, &call, over_lo, is_excluded)
    } else if is_excluded {
        // A proxy's real listeners are passed to as well.
        return Decision::pass(Reason::ExcludedInterface);
    } else {
        proxied(tables, plan, header, &call, over_lo)
    };
    if call.bound_device && decision.leads_to_loopback() {
        return Decision::pass(Reason::BoundDevice);
    }
    decision
}

/// Of a workload whose plan could not be put in force.
#[inline(always)]
fn refused<T: Tables>(
    tables: &T,
    plan: PlanId,
    header: &PlanHeader,
    call: &OutboundCall,
) -> Decision {
    if call.dst.addr.is_loopback() {
        Decision::pass(Reason::Loopback)
    } else if header.flags & PlanHeader::PROXIED != 0
        && is_proxy(tables, plan, header, &call.caller)
    {
        Decision::pass(Reason::ProxyOwn)
    } else if tables.is_local(&call.dst.addr) {
        Decision::pass(Reason::SelfCall)
    } else {
        Decision::new(Path::Deny, Reason::MapFull)
    }
}

/// Whether a destination is the workload itself.
#[inline(always)]
fn is_own<T: Tables>(tables: &T, dst: &Addr) -> bool {
    dst.is_loopback() || tables.is_local(dst)
}

/// Of a workload without a proxy. `over_lo`: whether it calls itself, if that is known.
#[inline(always)]
fn direct<T: Tables>(
    tables: &T,
    plan: PlanId,
    header: &PlanHeader,
    call: &OutboundCall,
    over_lo: Option<bool>,
    is_excluded: bool,
) -> Decision {
    if call.transport != Transport::Tcp {
        return Decision::pass(Reason::NotIncluded);
    }
    let rule = outbound_rule(tables, plan, header, &call.dst);
    if rule.flags & Rule::EXEMPT_SELF != 0 {
        if call.dst.addr.is_loopback() {
            return Decision::pass(Reason::Loopback);
        }
        if over_lo.unwrap_or_else(|| tables.is_local(&call.dst.addr)) {
            return Decision::pass(Reason::SelfCall);
        }
    }
    if rule.flags & Rule::FIRST == 0 {
        if is_excluded {
            return Decision::pass(Reason::ExcludedInterface);
        }
        if !is_captured_group(tables, plan, header, &call.caller) {
            return Decision::pass(Reason::OwnerGroup);
        }
    }
    follow(tables, plan, header, &rule, header.outbound_port)
}

/// Of a workload with a proxy.
#[inline(always)]
fn proxied<T: Tables>(
    tables: &T,
    plan: PlanId,
    header: &PlanHeader,
    call: &OutboundCall,
    over_lo: bool,
) -> Decision {
    let dst = &call.dst;
    // Whatever other rules there are, they let it pass, too.
    if !over_lo && is_proxy(tables, plan, header, &call.caller) {
        return Decision::pass(Reason::ProxyOwn);
    }
    if !dst.addr.is_v4() && header.flags & PlanHeader::IPV6 == 0 {
        return Decision::pass(Reason::Ipv6Off);
    }
    let decision = redirected(tables, plan, header, call, over_lo);
    if over_lo
        && header.flags & PlanHeader::TPROXY != 0
        && decision.path == Path::Pass
        && call.transport == Transport::Tcp
    {
        return arriving(tables, plan, header, call, decision);
    }
    decision
}

/// What `istio-iptables` has in its nat table: a connection is led to a port of the proxy's, or
/// passes.
#[inline(always)]
fn redirected<T: Tables>(
    tables: &T,
    plan: PlanId,
    header: &PlanHeader,
    call: &OutboundCall,
    over_lo: bool,
) -> Decision {
    let OutboundCall {
        dst,
        transport,
        caller,
        ..
    } = call;
    let is_tcp = matches!(transport, Transport::Tcp);
    let rule = if is_tcp {
        outbound_rule(tables, plan, header, dst)
    } else {
        dns_rule(tables, plan, header, dst)
    };
    if rule.flags & Rule::FIRST != 0 {
        return follow(tables, plan, header, &rule, header.outbound_port);
    }
    if over_lo && is_passthrough(&call.src) {
        return Decision::pass(Reason::Passthrough);
    }
    let is_dns = header.dns_port != 0 && dst.port == DNS_PORT;
    let is_self_call =
        over_lo && is_tcp && !header.is_loopback(&dst.addr) && dst.port != header.tunnel_port;
    let to_itself = Decision::proxy(Reason::ProxySelfCall, header.inbound_port);
    if over_lo && !is_dns && header.flags & PlanHeader::LOOPBACK_INCLUDED == 0 {
        // The rules of the first uid return what is anybody else's.
        let is_first = caller.in_proxy_cgroup || caller.uid == header.proxy_uid;
        return match (is_first, is_self_call) {
            (true, true) => to_itself,
            (true, false) => Decision::pass(Reason::ProxyOwn),
            (false, _) if dst.addr.is_loopback() => Decision::pass(Reason::Loopback),
            (false, _) => Decision::pass(Reason::SelfCall),
        };
    }
    if is_proxy_uid(tables, plan, header, caller) {
        return if is_self_call && !is_dns {
            to_itself
        } else {
            Decision::pass(Reason::ProxyOwn)
        };
    }
    if is_proxy_gid(tables, plan, header, caller) {
        return if is_self_call {
            to_itself
        } else {
            Decision::pass(Reason::ProxyOwn)
        };
    }
    if !is_captured_group(tables, plan, header, &call.caller) {
        return Decision::pass(Reason::OwnerGroup);
    }
    if rule.reason == Reason::Dns as u8 {
        return Decision::proxy(Reason::Dns, header.dns_port);
    }
    if header.is_loopback(&dst.addr) {
        return Decision::pass(Reason::Loopback);
    }
    follow(tables, plan, header, &rule, header.outbound_port)
}

/// What `istio-iptables` has in its mangle table for a transparent proxy: what the proxy sends to
/// the workload itself arrives like anybody's connection, unless it already comes from the inbound
/// listener, and then has the source address of whom it is for.
#[inline(always)]
fn arriving<T: Tables>(
    tables: &T,
    plan: PlanId,
    header: &PlanHeader,
    call: &OutboundCall,
    decision: Decision,
) -> Decision {
    let OutboundCall {
        dst, src, caller, ..
    } = call;
    if is_passthrough(src)
        || decision.reason == Reason::NoneListener as u8
        || header.is_loopback(&dst.addr)
        || !is_proxy(tables, plan, header, caller)
    {
        return decision;
    }
    if !src.is_wildcard() && !src.is_loopback() && !tables.is_local(src) {
        return Decision {
            arrival: Arrival::Passes,
            ..decision
        };
    }
    let rule = inbound_rule(tables, plan, header, dst);
    if rule.path != Path::Proxy as u8 {
        return decision;
    }
    Decision {
        arrival: Arrival::Captured,
        listener: rule.listener,
        ..Decision::proxy(Reason::ProxySelfCall, 0)
    }
}

#[inline(always)]
fn is_passthrough(src: &Addr) -> bool {
    *src == Addr::PASSTHROUGH_V4 || *src == Addr::PASSTHROUGH_V6
}

/// Whether the proxy itself calls.
#[inline(always)]
pub fn is_proxy<T: Tables>(tables: &T, plan: PlanId, header: &PlanHeader, caller: &Caller) -> bool {
    is_proxy_uid(tables, plan, header, caller) || is_proxy_gid(tables, plan, header, caller)
}

#[inline(always)]
fn is_proxy_uid<T: Tables>(tables: &T, plan: PlanId, header: &PlanHeader, caller: &Caller) -> bool {
    caller.in_proxy_cgroup
        || caller.uid == header.proxy_uid
        || header.tables & PlanHeader::HAS_PROXY_UIDS != 0
            && tables.owner(&OwnerKey {
                plan,
                role: OwnerKey::PROXY_UID,
                id: caller.uid,
            })
}

#[inline(always)]
fn is_proxy_gid<T: Tables>(tables: &T, plan: PlanId, header: &PlanHeader, caller: &Caller) -> bool {
    caller.gid == header.proxy_gid
        || header.tables & PlanHeader::HAS_PROXY_GIDS != 0
            && tables.owner(&OwnerKey {
                plan,
                role: OwnerKey::PROXY_GID,
                id: caller.gid,
            })
}

/// Whether connections of the caller's group are captured.
#[inline(always)]
fn is_captured_group<T: Tables>(
    tables: &T,
    plan: PlanId,
    header: &PlanHeader,
    caller: &Caller,
) -> bool {
    if header.flags & (PlanHeader::ONLY_GROUPS | PlanHeader::EXCEPT_GROUPS) == 0 {
        return true;
    }
    let is_listed = tables.owner(&OwnerKey {
        plan,
        role: OwnerKey::GROUP,
        id: caller.gid,
    });
    is_listed == (header.flags & PlanHeader::ONLY_GROUPS != 0)
}

/// Decides an inbound connection.
#[inline(always)]
pub fn inbound<T: Tables>(
    tables: &T,
    plan: PlanId,
    header: &PlanHeader,
    call: &InboundCall,
) -> Decision {
    let InboundCall {
        src,
        dst,
        interface,
    } = call;
    if header.flags & PlanHeader::TPROXY != 0 {
        match tables.arrival(src, dst) {
            Arrival::Ordinary => {}
            Arrival::Passes => return Decision::pass(Reason::ProxyOwn),
            Arrival::Captured => {
                return Decision::proxy(Reason::ProxySelfCall, header.inbound_port);
            }
        }
    }
    // A call to one's own address comes from that address unless the caller bound another one;
    // `::6` is no loopback address, but nobody else's.
    let comes_from_own = || {
        src.addr == dst.addr
            || src.addr.is_loopback()
            || is_passthrough(&src.addr)
            || tables.is_local(&src.addr)
    };
    if header.flags & PlanHeader::REFUSES != 0 {
        return if comes_from_own() {
            Decision::pass(Reason::SelfCall)
        } else {
            Decision::new(Path::Deny, Reason::MapFull)
        };
    }
    let interfaces = PlanHeader::EXCLUDED_INTERFACES | PlanHeader::VIRTUAL_INTERFACES;
    let is_own = (header.flags & interfaces != 0).then(comes_from_own);
    let interface = match is_own {
        Some(false) => tables.ingress(plan, *interface),
        Some(true) | None => 0,
    };
    if interface & Interface::VIRTUAL != 0 {
        return from_virtual(tables, plan, header, dst);
    }
    let rule = inbound_rule(tables, plan, header, dst);
    if rule.flags & Rule::FIRST != 0 {
        return follow(tables, plan, header, &rule, header.inbound_port);
    }
    if interface & Interface::EXCLUDED != 0 {
        return Decision::pass(Reason::ExcludedInterface);
    }
    if header.flags & PlanHeader::PROXIED != 0
        && header.flags & PlanHeader::IPV6 == 0
        && !dst.addr.is_v4()
    {
        return Decision::pass(Reason::Ipv6Off);
    }
    if rule.flags & Rule::EXEMPT_SELF != 0 && is_own.unwrap_or_else(comes_from_own) {
        return Decision::pass(Reason::SelfCall);
    }
    follow(tables, plan, header, &rule, header.inbound_port)
}

/// What arrives by a virtual interface goes to the proxy's outbound listener, or nowhere.
#[inline(always)]
fn from_virtual<T: Tables>(
    tables: &T,
    plan: PlanId,
    header: &PlanHeader,
    dst: &Endpoint,
) -> Decision {
    let is_captured = (dst.addr.is_v4() || header.flags & PlanHeader::IPV6 != 0)
        && (header.flags & PlanHeader::VIRTUAL_ALL != 0
            || tables
                .outbound_prefix(&PrefixKey {
                    plan,
                    port: 0,
                    table: PrefixKey::VIRTUAL,
                    addr: dst.addr,
                })
                .is_some());
    if is_captured {
        Decision::proxy(Reason::VirtualInterface, header.outbound_port)
    } else {
        Decision::pass(Reason::VirtualInterface)
    }
}

/// The rule for datagrams: of all rules, those of the port of DNS for networks.
#[inline(always)]
fn dns_rule<T: Tables>(tables: &T, plan: PlanId, header: &PlanHeader, dst: &Endpoint) -> Rule {
    let pass = Rule::new(Path::Pass, Reason::NotIncluded);
    if header.tables & PlanHeader::HAS_OUTBOUND_PORT_PREFIX == 0 || dst.addr.is_multicast() {
        return pass;
    }
    let found = tables.outbound_prefix(&PrefixKey {
        plan,
        port: dst.port,
        table: PrefixKey::OUTBOUND,
        addr: dst.addr,
    });
    match found {
        Some(rule) if rule.reason == Reason::Dns as u8 || rule.flags & Rule::FIRST != 0 => rule,
        _ => pass,
    }
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
        table: PrefixKey::OUTBOUND,
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

/// Turns the rule that matched into a decision: chooses the backend, or the port of the proxy's.
#[inline(always)]
fn follow<T: Tables>(
    tables: &T,
    plan: PlanId,
    header: &PlanHeader,
    rule: &Rule,
    proxy_port: u16,
) -> Decision {
    let target = if rule.backends > 1 {
        let index = tables.random() % rule.backends;
        match tables.backend(&BackendKey {
            plan,
            group: rule.group,
            index,
        }) {
            Some(target) => target,
            None => return missing(header.flags & PlanHeader::OPEN_UNKNOWN != 0),
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
        arrival: Arrival::Ordinary,
        proxy_port,
        listener: rule.listener,
        target,
    }
}
