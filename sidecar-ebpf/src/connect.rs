//! connect4/6: decides an outbound connection and rewrites its destination.

use aya_ebpf::{bindings::bpf_sock_addr, helpers::bpf_get_prandom_u32};
use sidecar_common::{
    Addr, Endpoint, Path, Reason,
    decide::{self, Arrival, Decision, Direction, OutboundCall, Transport},
    keys::PlanId,
    standin,
    values::{Identity, Original, PlanHeader},
};

use crate::{
    listening::is_listening,
    maps::{self, KernelTables},
    outcome::{Connection, Outcome},
    sock_addr::{
        ALLOW, Hook, address, bound_to, call, note, set_address, socket, transport, verdict,
    },
    source,
};

/// The connect hook.
#[inline(always)]
pub fn connect(ctx: *mut bpf_sock_addr, hook: Hook) -> i32 {
    let identity = maps::identity();
    if identity.workload == 0 {
        return ALLOW;
    }
    let Some(transport) = transport(ctx) else {
        return ALLOW;
    };
    let is_tcp = matches!(transport, Transport::Tcp);
    let (plan, header) = match maps::plan_of(identity.workload) {
        Ok(Some((plan, header))) => (plan, Ok(header)),
        Ok(None) => {
            forget(ctx);
            return ALLOW;
        }
        Err((plan, missing)) if is_tcp => (plan, Err(missing)),
        Err(_) => return ALLOW,
    };
    let asked_for = address(ctx, hook);
    if let Ok(header) = header
        && !is_tcp
        && !decide::concerns_datagrams(header, asked_for.port)
    {
        forget(ctx);
        return ALLOW;
    }
    let sk = socket(ctx);
    let outcome = match header {
        Ok(header) => {
            let bound = bound_to(sk, hook);
            let call = call(identity, sk, &asked_for, &bound.addr, transport);
            lead(ctx, hook, identity, plan, header, &call, bound.port)
        }
        Err(missing) => {
            forget(ctx);
            Outcome::from(&missing)
        }
    };
    let connection = Connection {
        workload: identity.workload,
        plan,
        direction: Direction::Outbound,
        transport,
        destination: &asked_for,
    };
    outcome.report(&connection, || bound_to(sk, hook), || address(ctx, hook));
    verdict(ctx, hook, transport, &outcome)
}

/// Decides, and leads the connection there. `bound_port`: what the socket is bound to.
#[inline(always)]
fn lead(
    ctx: *mut bpf_sock_addr,
    hook: Hook,
    identity: &Identity,
    plan: PlanId,
    header: &PlanHeader,
    call: &OutboundCall,
    bound_port: u16,
) -> Outcome {
    let asked_for = &call.dst;
    let tables = KernelTables {
        workload: identity.workload,
    };
    let decision = decide::outbound(&tables, plan, header, call);
    let mut known_by_address = false;
    let target = match decision.path {
        // Only what is led there means the destination.
        Path::Pass
            if standin::slot_of(&asked_for.addr).is_some()
                && asked_for.port == header.outbound_port =>
        {
            Endpoint::new(asked_for.addr.loopback(), asked_for.port)
        }
        Path::Pass => Endpoint::default(),
        Path::Direct => decision.target,
        Path::Relay => {
            let port = if asked_for.addr.is_v4() {
                identity.relay_port_v4
            } else {
                identity.relay_port_v6
            };
            if port == 0 {
                return Outcome::refused(Reason::TargetNotListening).by(&decision);
            }
            Endpoint::new(asked_for.addr.loopback(), port)
        }
        Path::Proxy => {
            let mut listener = proxy_listener(header, &decision, &asked_for.addr);
            // Else the kernel refuses what is led to where nobody listens.
            if listener.port != 0
                && header.flags & PlanHeader::OPEN_PROXY_GONE != 0
                && !is_listening(ctx, &listener, call.transport)
            {
                forget(ctx);
                return Outcome::from(&decide::proxy_gone(header, &decision)).by(&decision);
            }
            if may_stand_in(identity, header, &decision, call)
                && let Some(addr) = maps::cgroup::stand_in(identity.workload, asked_for)
            {
                listener.addr = addr;
                known_by_address = true;
            }
            listener
        }
        Path::Deny => return Outcome::from(&decision),
    };
    // A v4 socket cannot reach a v6 target; the compiler sends those through the relay.
    if target.port != 0 && matches!(hook, Hook::V4) && !target.addr.is_v4() {
        return Outcome::refused(Reason::PlanIncomplete).by(&decision);
    }
    match kind(&decision, &target) {
        Some(kind) if !known_by_address => {
            if !note(socket(ctx), plan, asked_for, &decision, kind) {
                forget(ctx);
                return Outcome::without_memory(header).by(&decision);
            }
        }
        _ => forget(ctx),
    }
    if target.port != 0 {
        set_address(ctx, hook, &target);
        // A bound port keeps a socket from being bound again.
        if matches!(decision.path, Path::Proxy) && bound_port == 0 && call.src.is_wildcard() {
            let over_lo = may_be_own(header, &decision);
            let from = source::of(identity, &tables, &asked_for.addr, over_lo);
            source::bind(ctx, hook, &from);
        }
    }
    Outcome::from(&decision)
}

/// The getpeername hook: a redirected socket answers with what it asked for.
#[inline(always)]
pub fn getpeername(ctx: *mut bpf_sock_addr, hook: Hook) -> i32 {
    // SAFETY: the context's own socket.
    if let Some(original) = unsafe { maps::cgroup::recall(socket(ctx)) }
        && original.kind != Original::ACCEPTED
    {
        set_address(ctx, hook, &original.dst);
    } else if let Some(destination) =
        maps::destination(maps::identity().workload, &address(ctx, hook).addr)
    {
        set_address(ctx, hook, &destination);
    }
    ALLOW
}

/// Where the proxy listens for this connection; port 0: it keeps its destination. From 127.0.0.1 on
/// it is one of several addresses, as each can take as many connections as there are source ports.
#[inline(always)]
fn proxy_listener(header: &PlanHeader, decision: &Decision, asked_for: &Addr) -> Endpoint {
    let port = decision.proxy_port;
    if port == 0 {
        return Endpoint::default();
    }
    let mut addr = asked_for.loopback();
    if may_spread(header, decision, asked_for) {
        // SAFETY: takes nothing, cannot fail.
        let random = unsafe { bpf_get_prandom_u32() };
        let host = u32::from_be(addr.v4()) + random % standin::SPREAD;
        addr = Addr::from_v4(host.to_be());
    }
    Endpoint::new(addr, port)
}

/// Whether the proxy may know the destination by the address it is called at. Where it is
/// transparent, addresses are told to the letter.
#[inline(always)]
fn may_stand_in(
    identity: &Identity,
    header: &PlanHeader,
    decision: &Decision,
    call: &OutboundCall,
) -> bool {
    identity.flags & Identity::OWN_NETNS != 0
        && matches!(call.transport, Transport::Tcp)
        && may_spread(header, decision, &call.dst.addr)
}

/// Whether it is all the same at which of the loopback addresses the proxy is called.
#[inline(always)]
fn may_spread(header: &PlanHeader, decision: &Decision, asked_for: &Addr) -> bool {
    header.flags & PlanHeader::TPROXY == 0
        && decision.proxy_port == header.outbound_port
        && asked_for.is_v4()
}

/// Whether the destination may be the workload's own address, with that decision.
#[inline(always)]
pub fn may_be_own(header: &PlanHeader, decision: &Decision) -> bool {
    decision.proxy_port != header.outbound_port
        || header.dns_port != 0
        || header.flags & PlanHeader::LOOPBACK_INCLUDED != 0
}

/// What is to be noted of the connection (`Original::kind`), if anything is.
#[inline(always)]
fn kind(decision: &Decision, target: &Endpoint) -> Option<u32> {
    match (decision.path, decision.arrival) {
        (_, Arrival::Captured) => Some(Original::CAPTURED),
        (_, Arrival::Passes) => Some(Original::PASSES),
        _ if target.port == 0 => None,
        (Path::Direct | Path::Pass, _) => Some(Original::REWRITTEN),
        _ => Some(Original::REDIRECTED),
    }
}

#[inline(always)]
fn forget(ctx: *mut bpf_sock_addr) {
    // SAFETY: the context's own socket.
    unsafe { maps::cgroup::forget(socket(ctx)) }
}
