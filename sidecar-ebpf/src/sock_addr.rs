//! What the hooks with a socket address have in common: connect, getpeername, sendmsg, recvmsg.

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::{
        bpf_get_current_uid_gid,
        generated::{bpf_get_current_cgroup_id, bpf_set_retval},
    },
};
use sidecar_common::{
    Addr, Endpoint, IPPROTO_MPTCP, IPPROTO_TCP, IPPROTO_UDP, Path,
    decide::{Caller, Decision, OutboundCall, Transport},
    kernel::Kernel,
    keys::PlanId,
    values::{Identity, Original},
};

use crate::{
    ctx::{read, write},
    kernel, maps,
    outcome::Outcome,
};

/// Let the system call go on.
pub const ALLOW: i32 = 1;
/// End the system call: with the error set by `bpf_set_retval`, else with `EPERM`.
const REFUSE: i32 = 0;

const ECONNREFUSED: i32 = 111;

/// The address family of the hook: a v6 socket may well carry a v4-mapped destination.
#[derive(Clone, Copy)]
pub enum Hook {
    /// connect4, getpeername4, ...
    V4,
    /// connect6, getpeername6, ...
    V6,
}

/// The transport of the socket; `None`: one that is left alone.
#[inline(always)]
pub fn transport(ctx: *mut bpf_sock_addr) -> Option<Transport> {
    match read!(ctx, protocol) {
        IPPROTO_TCP | IPPROTO_MPTCP => Some(Transport::Tcp),
        IPPROTO_UDP => Some(Transport::Udp),
        _ => None,
    }
}

/// The socket of the call.
#[inline(always)]
pub fn socket(ctx: *mut bpf_sock_addr) -> *mut bpf_sock {
    read!(ctx, __bindgen_anon_1.sk)
}

/// The address in the context: the destination, or what the caller is going to see.
#[inline(always)]
pub fn address(ctx: *mut bpf_sock_addr, hook: Hook) -> Endpoint {
    let addr = match hook {
        Hook::V4 => Addr::from_v4(read!(ctx, user_ip4)),
        Hook::V6 => Addr::from_v6([
            read!(ctx, user_ip6[0]),
            read!(ctx, user_ip6[1]),
            read!(ctx, user_ip6[2]),
            read!(ctx, user_ip6[3]),
        ]),
    };
    Endpoint::new(addr, u16::from_be(read!(ctx, user_port) as u16))
}

/// Replaces the address in the context.
#[inline(always)]
pub fn set_address(ctx: *mut bpf_sock_addr, hook: Hook, to: &Endpoint) {
    match hook {
        Hook::V4 => write!(ctx, bpf_sock_addr.user_ip4 = to.addr.v4()),
        Hook::V6 => {
            write!(ctx, bpf_sock_addr.user_ip6[0] = to.addr.words[0]);
            write!(ctx, bpf_sock_addr.user_ip6[1] = to.addr.words[1]);
            write!(ctx, bpf_sock_addr.user_ip6[2] = to.addr.words[2]);
            write!(ctx, bpf_sock_addr.user_ip6[3] = to.addr.words[3]);
        }
    }
    write!(ctx, bpf_sock_addr.user_port = u32::from(to.port.to_be()));
}

/// What the socket is bound to: an address, which may be a wildcard, and a port, which may be 0.
#[inline(always)]
pub fn bound_to(sk: *mut bpf_sock, hook: Hook) -> Endpoint {
    let addr = match hook {
        Hook::V4 => Addr::from_v4(read!(sk, src_ip4)),
        Hook::V6 => Addr::from_v6([
            read!(sk, src_ip6[0]),
            read!(sk, src_ip6[1]),
            read!(sk, src_ip6[2]),
            read!(sk, src_ip6[3]),
        ]),
    };
    Endpoint::new(addr, read!(sk, src_port) as u16)
}

/// Who makes the current system call.
#[inline(always)]
pub fn caller(identity: &Identity) -> Caller {
    let ids = bpf_get_current_uid_gid();
    let in_proxy_cgroup = identity.proxy_cgroup != 0
        // SAFETY: takes nothing, cannot fail.
        && unsafe { bpf_get_current_cgroup_id() } == identity.proxy_cgroup;
    Caller {
        uid: (ids as u32).wrapping_sub(identity.uid_base),
        gid: ((ids >> 32) as u32).wrapping_sub(identity.gid_base),
        in_proxy_cgroup,
    }
}

/// The call as the decision sees it.
#[inline(always)]
pub fn call(
    identity: &Identity,
    sk: *mut bpf_sock,
    dst: &Endpoint,
    src: &Addr,
    transport: Transport,
) -> OutboundCall {
    OutboundCall {
        dst: *dst,
        src: *src,
        transport,
        caller: caller(identity),
        bound_device: read!(sk, bound_dev_if) != 0,
    }
}

/// Notes with the socket what it asked for, and what became of that (`Original::kind`). False: no
/// memory.
#[inline(always)]
pub fn note(
    sk: *mut bpf_sock,
    plan: PlanId,
    asked_for: &Endpoint,
    decision: &Decision,
    kind: u32,
) -> bool {
    let mut original = Original {
        dst: *asked_for,
        plan,
        listener: decision.listener,
        kind,
    };
    // SAFETY: callers have the socket of their context.
    unsafe { maps::cgroup::remember(sk, &mut original) }
}

/// Ends the system call with `ECONNREFUSED` if the connection is refused.
#[inline(always)]
pub fn verdict(
    ctx: *mut bpf_sock_addr,
    hook: Hook,
    transport: Transport,
    outcome: &Outcome,
) -> i32 {
    if !matches!(outcome.path, Path::Deny) {
        return ALLOW;
    }
    if kernel::has(Kernel::SET_RETVAL) {
        // SAFETY: sets the current system call's result.
        unsafe { bpf_set_retval(-ECONNREFUSED) };
        return REFUSE;
    }
    // Nobody can listen on port 0 of loopback: there the kernel itself refuses. A socket that is
    // bound to another interface does not get there, and a datagram would be sent.
    if matches!(transport, Transport::Udp) || read!(socket(ctx), bound_dev_if) != 0 {
        return REFUSE;
    }
    let nowhere = Endpoint::new(address(ctx, hook).addr.loopback(), 0);
    set_address(ctx, hook, &nowhere);
    ALLOW
}
