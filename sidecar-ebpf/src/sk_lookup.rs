//! sk_lookup: decides an inbound connection and gives it to the socket it belongs to.
//!
//! This runs in softirq of whoever is current: nothing may be asked about the task.

use aya_ebpf::{
    bindings::{
        bpf_sk_lookup,
        sk_action::{SK_DROP, SK_PASS},
    },
    programs::SkLookupContext,
};
use sidecar_common::{
    Addr, Endpoint, IPPROTO_TCP, Path, Reason,
    decide::{self, Direction, InboundCall, Transport},
    kernel::Kernel,
    keys::{PlanId, WorkloadEndpoint, WorkloadId},
    values::PlanHeader,
};

use crate::{
    ctx::{read, read_addr},
    kernel,
    maps::{self, KernelTables},
    outcome::{Connection, Outcome},
};

/// The sk_lookup hook for the workload that this copy of the program serves.
#[inline(always)]
pub fn sk_lookup(ctx: &SkLookupContext, workload: WorkloadId) -> u32 {
    if read!(ctx.lookup, protocol) != IPPROTO_TCP {
        return SK_PASS;
    }
    // Nobody can listen there: see `sock_addr::verdict`.
    if read!(ctx.lookup, local_port) == 0 {
        return SK_PASS;
    }
    let (plan, header) = match maps::plan_of(workload) {
        Ok(Some((plan, header))) => (plan, Ok(header)),
        Ok(None) => return SK_PASS,
        Err((plan, missing)) => (plan, Err(missing)),
    };
    let mut call = call(ctx.lookup);
    let mut target = Endpoint::default();
    let outcome = match header {
        Err(missing) => Outcome::from(&missing),
        Ok(header) => {
            let dst = &call.dst;
            if header.flags & (PlanHeader::PROXIED | PlanHeader::TPROXY) == PlanHeader::PROXIED
                && dst.port == header.outbound_port
                && dst.addr.is_loopback()
            {
                return spread(ctx, workload, dst);
            }
            // No connection comes from there: it is asked whether somebody listens
            // (`listening.rs`).
            if call.src.port == 0 && dst.addr.is_loopback() {
                return SK_PASS;
            }
            call.interface = interface(ctx.lookup, workload, header, &call.src.addr);
            lead(ctx, workload, plan, header, &call, &mut target)
        }
    };
    let connection = Connection {
        workload,
        plan,
        direction: Direction::Inbound,
        transport: Transport::Tcp,
        destination: &call.dst,
    };
    outcome.report(&connection, || call.src, || target);
    match outcome.path {
        Path::Deny => SK_DROP,
        _ => SK_PASS,
    }
}

/// Decides, and gives the connection to its socket; `target`: which one, unless it is the relay's.
#[inline(always)]
fn lead(
    ctx: &SkLookupContext,
    workload: WorkloadId,
    plan: PlanId,
    header: &PlanHeader,
    call: &InboundCall,
    target: &mut Endpoint,
) -> Outcome {
    let dst = &call.dst;
    let decision = decide::inbound(&KernelTables { workload }, plan, header, call);
    let socket = match decision.path {
        Path::Pass | Path::Deny => return Outcome::from(&decision),
        Path::Direct => decision.target,
        // The relay's listeners are entered under port 0 of their family's wildcard.
        Path::Relay => {
            let relay = Endpoint::new(dst.addr.wildcard(), 0);
            return if maps::netns::assign(ctx, workload, &relay) {
                Outcome::from(&decision)
            } else {
                Outcome::refused(Reason::TargetNotListening).by(&decision)
            };
        }
        Path::Proxy => Endpoint::new(dst.addr.loopback(), decision.proxy_port),
    };
    if socket.port != 0 && !maps::netns::assign(ctx, workload, &socket) {
        return if matches!(decision.path, Path::Proxy) {
            Outcome::from(&decide::proxy_gone(header, &decision)).by(&decision)
        } else {
            Outcome::refused(Reason::TargetNotListening).by(&decision)
        };
    }
    *target = socket;
    Outcome::from(&decision)
}

/// Outbound connections are led to several loopback addresses; a proxy that listens on the first
/// one only takes them all. One that listens on a wildcard address needs no help.
#[inline(always)]
fn spread(ctx: &SkLookupContext, workload: WorkloadId, dst: &Endpoint) -> u32 {
    let first = dst.addr.loopback();
    if dst.addr != first {
        maps::netns::assign_exactly(
            ctx,
            &WorkloadEndpoint {
                workload,
                endpoint: Endpoint::new(first, dst.port),
            },
        );
    }
    SK_PASS
}

#[inline(always)]
fn call(ctx: *mut bpf_sk_lookup) -> InboundCall {
    let family = read!(ctx, family);
    let src = read_addr!(ctx, family, remote_ip4, remote_ip6);
    let dst = read_addr!(ctx, family, local_ip4, local_ip6);
    InboundCall {
        src: Endpoint::new(src, u16::from_be(read!(ctx, remote_port))),
        dst: Endpoint::new(dst, read!(ctx, local_port) as u16),
        interface: 0,
    }
}

/// The interface by which the connection arrives, where that makes a difference.
#[inline(always)]
fn interface(
    ctx: *mut bpf_sk_lookup,
    workload: WorkloadId,
    header: &PlanHeader,
    src: &Addr,
) -> u32 {
    if header.flags & (PlanHeader::EXCLUDED_INTERFACES | PlanHeader::VIRTUAL_INTERFACES) == 0 {
        return 0;
    }
    if kernel::has(Kernel::INGRESS_IFINDEX) {
        return read!(ctx, ingress_ifindex);
    }
    let back = KernelTables { workload }.route(src);
    back.map_or(0, |route| route.interface)
}
