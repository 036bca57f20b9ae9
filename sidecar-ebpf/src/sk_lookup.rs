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
    decide::{self, Direction},
    keys::WorkloadId,
};

use crate::{
    ctx::{read, read_addr},
    maps::{self, KernelTables},
};

/// The sk_lookup hook for the workload that this copy of the program serves.
#[inline(always)]
pub fn sk_lookup(ctx: &SkLookupContext, workload: WorkloadId) -> u32 {
    if read!(ctx.lookup, protocol) != IPPROTO_TCP {
        return SK_PASS;
    }
    let (plan, header) = match maps::plan_of(workload) {
        Ok(Some(plan)) => plan,
        Ok(None) => return SK_PASS,
        Err(reason) => return refuse(workload, reason as u8),
    };
    let (src, dst) = ends(ctx.lookup);
    let decision = decide::inbound(
        &KernelTables { workload },
        plan,
        header,
        &decide::InboundCall {
            src: Endpoint::new(src, 0),
            dst,
            interface: 0,
        },
    );
    let socket = match decision.path {
        Path::Pass => Endpoint::default(),
        Path::Direct => decision.target,
        // The relay's listeners are entered under port 0 of their family's wildcard.
        Path::Relay => {
            let relay = Endpoint::new(dst.addr.wildcard(), 0);
            if maps::netns::assign(ctx, workload, &relay) {
                maps::count(workload, Direction::Inbound, decision.reason);
                return SK_PASS;
            }
            return refuse(workload, Reason::TargetNotListening as u8);
        }
        Path::Proxy => {
            let localhost = if dst.addr.is_v4() {
                Addr::LOOPBACK_V4
            } else {
                Addr::LOOPBACK_V6
            };
            Endpoint::new(localhost, decision.proxy_port)
        }
        Path::Deny => return refuse(workload, decision.reason),
    };
    if socket.port != 0 && !maps::netns::assign(ctx, workload, &socket) {
        return refuse(workload, Reason::TargetNotListening as u8);
    }
    maps::count(workload, Direction::Inbound, decision.reason);
    SK_PASS
}

#[inline(always)]
fn refuse(workload: WorkloadId, reason: u8) -> u32 {
    maps::count(workload, Direction::Inbound, reason);
    SK_DROP
}

/// The remote address and the local endpoint.
#[inline(always)]
fn ends(ctx: *mut bpf_sk_lookup) -> (Addr, Endpoint) {
    let family = read!(ctx, family);
    let src = read_addr!(ctx, family, remote_ip4, remote_ip6);
    let dst = read_addr!(ctx, family, local_ip4, local_ip6);
    (src, Endpoint::new(dst, read!(ctx, local_port) as u16))
}
