//! sock_ops: publishes original destinations once the source port is known, and learns of
//! listening sockets.

use aya_ebpf::{bindings::bpf_sock, programs::SockOpsContext};
use sidecar_common::{
    Endpoint,
    decide::Tables as _,
    keys::{Tuple, WorkloadEndpoint},
    standin,
    values::Original,
};

use crate::{
    ctx::{read, read_addr},
    kernel,
    maps::{self, KernelTables},
};

/// `BPF_SOCK_OPS_TCP_CONNECT_CB`: the source port is chosen, no SYN has left.
const TCP_CONNECT_CB: u32 = 3;
/// `BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB`: a connection was accepted, and waits for accept(2).
pub const PASSIVE_ESTABLISHED_CB: u32 = 5;
/// `BPF_SOCK_OPS_TCP_LISTEN_CB`: right after listen(2).
const TCP_LISTEN_CB: u32 = 11;

/// The sock_ops hook. Its return value is not used by the kernel for these operations.
#[inline(always)]
pub fn sock_ops(ctx: &SockOpsContext) -> u32 {
    let op = read!(ctx.ops, op);
    if op == TCP_CONNECT_CB {
        connecting(ctx);
    } else if op == PASSIVE_ESTABLISHED_CB {
        accepted(ctx);
    } else if op == TCP_LISTEN_CB {
        listening(ctx);
    }
    1
}

#[inline(always)]
fn connecting(ctx: &SockOpsContext) {
    // The address tells where it was going.
    if standin::slot_of_v4(read!(ctx.ops, remote_ip4)).is_some() {
        return;
    }
    let workload = maps::identity().workload;
    if workload == 0 {
        return;
    }
    let Some(sk) = socket(ctx) else {
        return;
    };
    let tuple = Tuple {
        workload,
        client: local(ctx),
        server: remote(ctx),
    };
    // SAFETY: the context's own socket, not null.
    match unsafe { maps::cgroup::recall(sk) } {
        Some(original) if original.kind != Original::REWRITTEN => {
            maps::cgroup::publish_original(&tuple, &original);
        }
        // A connection straight to a listener must not inherit the original destination of an
        // earlier one with the same ends. Only connections within the workload have one.
        _ if tuple.server.addr.is_loopback()
            || tuple.server.addr == tuple.client.addr
            || KernelTables { workload }.is_local(&tuple.server.addr) =>
        {
            maps::cgroup::retract_original(&tuple);
        }
        _ => {}
    }
}

/// Hands the original destination over to the accepted socket, with which it ends: nobody else can
/// be told it, however late it is asked for.
#[inline(always)]
fn accepted(ctx: &SockOpsContext) {
    if standin::slot_of_v4(read!(ctx.ops, local_ip4)).is_some() {
        return;
    }
    let server = local(ctx);
    let workload = maps::identity().workload;
    if workload == 0 || !server.addr.is_loopback() {
        return;
    }
    let Some(sk) = socket(ctx) else {
        return;
    };
    let tuple = Tuple {
        workload,
        client: remote(ctx),
        server,
    };
    let Some(mut original) = maps::original(&tuple) else {
        return;
    };
    original.kind = Original::ACCEPTED;
    // SAFETY: the context's own socket, not null.
    if unsafe { maps::cgroup::remember(sk, &mut original) } {
        maps::cgroup::retract_original(&tuple);
    }
}

#[inline(always)]
fn listening(ctx: &SockOpsContext) {
    let identity = maps::identity();
    let workload = identity.workload;
    if workload == 0 {
        return;
    }
    let Some(sk) = socket(ctx) else {
        return;
    };
    if kernel::netns(ctx, sk) != Some(identity.netns) {
        return;
    }
    let endpoint = local(ctx);
    if maps::cgroup::is_interesting(workload, endpoint.port) {
        maps::cgroup::enter_listener(ctx, &mut WorkloadEndpoint { workload, endpoint });
    }
}

#[inline(always)]
fn socket(ctx: &SockOpsContext) -> Option<*mut bpf_sock> {
    let sk: *mut bpf_sock = read!(ctx.ops, __bindgen_anon_2.sk);
    (!sk.is_null()).then_some(sk)
}

#[inline(always)]
fn local(ctx: &SockOpsContext) -> Endpoint {
    let addr = read_addr!(ctx.ops, read!(ctx.ops, family), local_ip4, local_ip6);
    Endpoint::new(addr, read!(ctx.ops, local_port) as u16)
}

#[inline(always)]
fn remote(ctx: &SockOpsContext) -> Endpoint {
    let addr = read_addr!(ctx.ops, read!(ctx.ops, family), remote_ip4, remote_ip6);
    // A big-endian 16-bit port in the upper half of a big-endian word.
    Endpoint::new(addr, u32::from_be(read!(ctx.ops, remote_port)) as u16)
}
