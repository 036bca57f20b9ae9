//! sock_ops: publishes original destinations once the source port is known, and learns of
//! listening sockets.

use aya_ebpf::{
    EbpfContext as _, bindings::bpf_sock, helpers::generated::bpf_get_netns_cookie,
    programs::SockOpsContext,
};
use sidecar_common::{Endpoint, keys::WorkloadEndpoint};

use crate::{
    ctx::{read, read_addr},
    maps,
};

/// `BPF_SOCK_OPS_TCP_CONNECT_CB`: the source port is chosen, no SYN has left.
const TCP_CONNECT_CB: u32 = 3;
/// `BPF_SOCK_OPS_TCP_LISTEN_CB`: right after listen(2).
const TCP_LISTEN_CB: u32 = 11;

/// The sock_ops hook. Its return value is not used by the kernel for these operations.
#[inline(always)]
pub fn sock_ops(ctx: &SockOpsContext) -> u32 {
    let op = read!(ctx.ops, op);
    if op == TCP_CONNECT_CB {
        connecting(ctx);
    } else if op == TCP_LISTEN_CB {
        listening(ctx);
    }
    1
}

#[inline(always)]
fn connecting(ctx: &SockOpsContext) {
    let workload = maps::identity().workload;
    if workload == 0 {
        return;
    }
    let sk: *mut bpf_sock = read!(ctx.ops, __bindgen_anon_2.sk);
    if sk.is_null() {
        return;
    }
    // SAFETY: checked for null just now.
    match unsafe { maps::cgroup::recall(sk) } {
        Some(original) if original.kind == sidecar_common::values::Original::REDIRECTED => {
            maps::cgroup::publish_original(
                &WorkloadEndpoint {
                    workload,
                    endpoint: local(ctx),
                },
                &original,
            );
        }
        Some(_) => {}
        // A connection straight to a capture port must not inherit the original destination of
        // an earlier one from the same source port. One to elsewhere leaves it: connections to
        // different places may share a source port, and the other one may not be asked for yet.
        None => {
            let client = WorkloadEndpoint {
                workload,
                endpoint: local(ctx),
            };
            if maps::cgroup::original(&client).is_some() {
                maps::cgroup::retract_original(&client);
            }
        }
    }
}

#[inline(always)]
fn listening(ctx: &SockOpsContext) {
    let identity = maps::identity();
    let workload = identity.workload;
    // SAFETY: the context is the kernel's own.
    if workload == 0 || unsafe { bpf_get_netns_cookie(ctx.as_ptr()) } != identity.netns_cookie {
        return;
    }
    let endpoint = local(ctx);
    if maps::cgroup::is_interesting(workload, endpoint.port) {
        maps::cgroup::enter_listener(ctx, &mut WorkloadEndpoint { workload, endpoint });
    }
}

#[inline(always)]
fn local(ctx: &SockOpsContext) -> Endpoint {
    let addr = read_addr!(ctx.ops, read!(ctx.ops, family), local_ip4, local_ip6);
    Endpoint::new(addr, read!(ctx.ops, local_port) as u16)
}
