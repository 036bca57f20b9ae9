//! connect4/6: decides an outbound connection and rewrites its destination.

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::{
        bpf_get_current_uid_gid,
        generated::{bpf_get_current_cgroup_id, bpf_set_retval},
    },
};
use sidecar_common::{
    Addr, Endpoint, IPPROTO_MPTCP, IPPROTO_TCP, Path, Reason,
    decide::{self, Decision, Direction},
    keys::{PlanId, WorkloadId},
    values::{Identity, Original, PlanHeader},
};

use crate::{
    ctx::{read, write},
    maps::{self, KernelTables},
};

/// Let the system call go on.
pub const ALLOW: i32 = 1;
/// End the system call with the error set by `bpf_set_retval`.
const REFUSE: i32 = 0;

const ECONNREFUSED: i32 = 111;

/// The address family of the hook: a v6 socket may well carry a v4-mapped destination.
#[derive(Clone, Copy)]
pub enum Hook {
    /// connect4, getpeername4.
    V4,
    /// connect6, getpeername6.
    V6,
}

/// The connect hook.
#[inline(always)]
pub fn connect(ctx: *mut bpf_sock_addr, hook: Hook) -> i32 {
    let identity = maps::identity();
    if identity.workload == 0 || !is_tcp(ctx) {
        return ALLOW;
    }
    let (plan, header) = match maps::plan_of(identity.workload) {
        Ok(Some(plan)) => plan,
        Ok(None) => {
            forget(ctx);
            return ALLOW;
        }
        Err(reason) => return refuse(identity.workload, reason as u8),
    };
    let asked_for = destination(ctx, hook);
    let decision = decide::outbound(
        &KernelTables {
            workload: identity.workload,
        },
        plan,
        header,
        &decide::OutboundCall {
            dst: asked_for,
            src: asked_for.addr.wildcard(),
            transport: decide::Transport::Tcp,
            caller: caller(identity),
            bound_device: false,
        },
    );
    act(ctx, hook, identity, plan, header, &asked_for, &decision)
}

/// The getpeername hook: a redirected socket answers with what it asked for.
#[inline(always)]
pub fn getpeername(ctx: *mut bpf_sock_addr, hook: Hook) -> i32 {
    // SAFETY: the context's own socket.
    if let Some(original) = unsafe { maps::cgroup::recall(socket(ctx)) } {
        set_destination(ctx, hook, &original.dst);
    }
    ALLOW
}

/// Who runs this hook.
#[inline(always)]
pub fn caller(identity: &Identity) -> decide::Caller {
    let ids = bpf_get_current_uid_gid();
    decide::Caller {
        uid: (ids as u32).wrapping_sub(identity.uid_base),
        gid: ((ids >> 32) as u32).wrapping_sub(identity.gid_base),
        in_proxy_cgroup: identity.proxy_cgroup != 0
            // SAFETY: takes nothing, cannot fail.
            && unsafe { bpf_get_current_cgroup_id() } == identity.proxy_cgroup,
    }
}

#[inline(always)]
fn act(
    ctx: *mut bpf_sock_addr,
    hook: Hook,
    identity: &Identity,
    plan: PlanId,
    header: &PlanHeader,
    asked_for: &Endpoint,
    decision: &Decision,
) -> i32 {
    let via_local = |port_v4: u16, port_v6: u16| {
        if asked_for.addr.is_v4() {
            Endpoint::new(Addr::LOOPBACK_V4, port_v4)
        } else {
            Endpoint::new(Addr::LOOPBACK_V6, port_v6)
        }
    };
    let target = match decision.path {
        Path::Pass => Endpoint::default(),
        Path::Direct => decision.target,
        Path::Relay => {
            let target = via_local(identity.relay_port_v4, identity.relay_port_v6);
            if target.port == 0 {
                return refuse(identity.workload, Reason::TargetNotListening as u8);
            }
            target
        }
        Path::Proxy => via_local(decision.proxy_port, decision.proxy_port),
        Path::Deny => return refuse(identity.workload, decision.reason),
    };
    if target.port == 0 {
        forget(ctx);
    } else {
        // A v4 socket cannot reach a v6 target; the compiler sends those through the relay.
        if matches!(hook, Hook::V4) && !target.addr.is_v4() {
            return refuse(identity.workload, Reason::PlanIncomplete as u8);
        }
        let mut original = Original {
            dst: *asked_for,
            plan,
            listener: decision.listener,
            kind: if decision.path == Path::Direct {
                Original::REWRITTEN
            } else {
                Original::REDIRECTED
            },
        };
        // SAFETY: the context's own socket.
        if !unsafe { maps::cgroup::remember(socket(ctx), &mut original) } {
            return refuse(identity.workload, Reason::NoMemory as u8);
        }
        set_destination(ctx, hook, &target);
    }
    maps::count(identity.workload, Direction::Outbound, decision.reason);
    ALLOW
}

#[inline(always)]
fn refuse(workload: WorkloadId, reason: u8) -> i32 {
    maps::count(workload, Direction::Outbound, reason);
    // SAFETY: sets the current system call's result; EPERM would be the default.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    REFUSE
}

#[inline(always)]
fn is_tcp(ctx: *mut bpf_sock_addr) -> bool {
    let protocol = read!(ctx, protocol);
    protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP
}

#[inline(always)]
fn socket(ctx: *mut bpf_sock_addr) -> *mut bpf_sock {
    read!(ctx, __bindgen_anon_1.sk)
}

#[inline(always)]
fn forget(ctx: *mut bpf_sock_addr) {
    // SAFETY: the context's own socket.
    unsafe { maps::cgroup::forget(socket(ctx)) }
}

#[inline(always)]
fn destination(ctx: *mut bpf_sock_addr, hook: Hook) -> Endpoint {
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

#[inline(always)]
fn set_destination(ctx: *mut bpf_sock_addr, hook: Hook, to: &Endpoint) {
    match hook {
        Hook::V4 => write!(ctx, user_ip4 = to.addr.v4()),
        Hook::V6 => {
            write!(ctx, user_ip6[0] = to.addr.words[0]);
            write!(ctx, user_ip6[1] = to.addr.words[1]);
            write!(ctx, user_ip6[2] = to.addr.words[2]);
            write!(ctx, user_ip6[3] = to.addr.words[3]);
        }
    }
    write!(ctx, user_port = u32::from(to.port.to_be()));
}
