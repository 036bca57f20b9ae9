//! sendmsg4/6 and recvmsg4/6: DNS queries of sockets that are not connected are led to the proxy,
//! and its answers come from the server that was asked.

use aya_ebpf::bindings::bpf_sock_addr;
use sidecar_common::{
    Addr, Endpoint, Path,
    decide::{self, Direction, Transport},
    values::{Identity, Original},
};

use crate::{
    connect::may_be_own,
    ctx::{read, write},
    listening::is_listening,
    maps::{self, KernelTables},
    outcome::{Connection, Outcome},
    sock_addr::{ALLOW, Hook, address, call, note, set_address, socket, verdict},
    source,
};

/// The sendmsg hook.
#[inline(always)]
pub fn sendmsg(ctx: *mut bpf_sock_addr, hook: Hook) -> i32 {
    let identity = maps::identity();
    if identity.workload == 0 {
        return ALLOW;
    }
    // A datagram of a workload whose plan is missing is nothing to be refused: it is not TCP.
    let Ok(Some((plan, header))) = maps::plan_of(identity.workload) else {
        return ALLOW;
    };
    let asked_for = address(ctx, hook);
    if !decide::concerns_datagrams(header, asked_for.port) {
        return ALLOW;
    }
    let sk = socket(ctx);
    let tables = KernelTables {
        workload: identity.workload,
    };
    let src = from(ctx, hook);
    let call = call(identity, sk, &asked_for, &src, Transport::Udp);
    let decision = decide::outbound(&tables, plan, header, &call);
    let proxy = Endpoint::new(asked_for.addr.loopback(), decision.proxy_port);
    // Nobody tells a socket that is not connected that its query has met a closed port.
    let decision = match decision.path {
        Path::Proxy if !is_listening(ctx, &proxy, Transport::Udp) => {
            decide::proxy_gone(header, &decision)
        }
        _ => decision,
    };
    let outcome = match decision.path {
        Path::Proxy if note(sk, plan, &asked_for, &decision, Original::REDIRECTED) => {
            set_address(ctx, hook, &proxy);
            if src.is_wildcard() {
                let over_lo = may_be_own(header, &decision);
                send_from(ctx, hook, identity, &tables, &asked_for.addr, over_lo);
            }
            Outcome::from(&decision)
        }
        Path::Proxy => Outcome::without_memory(header).by(&decision),
        Path::Deny => Outcome::from(&decision),
        _ => {
            // What another query of this socket has left must not change this one's answer.
            // SAFETY: the context's own socket.
            unsafe { maps::cgroup::forget(sk) };
            Outcome::from(&decision)
        }
    };
    let connection = Connection {
        workload: identity.workload,
        plan,
        direction: Direction::Outbound,
        transport: Transport::Udp,
        destination: &asked_for,
    };
    let source = || Endpoint::new(from(ctx, hook), read!(sk, src_port) as u16);
    outcome.report(&connection, source, || address(ctx, hook));
    verdict(ctx, hook, Transport::Udp, &outcome)
}

/// The recvmsg hook.
#[inline(always)]
pub fn recvmsg(ctx: *mut bpf_sock_addr, hook: Hook) -> i32 {
    let seen = address(ctx, hook);
    // Most datagrams: nothing has to be looked up.
    if !seen.addr.is_loopback() {
        return ALLOW;
    }
    // SAFETY: the context's own socket.
    let Some(original) = (unsafe { maps::cgroup::recall(socket(ctx)) }) else {
        return ALLOW;
    };
    let Some((_, header)) = maps::known_plan_of(maps::identity().workload) else {
        return ALLOW;
    };
    if seen.port == header.dns_port && seen.addr == seen.addr.loopback() {
        set_address(ctx, hook, &original.dst);
    }
    ALLOW
}

/// Where the datagram is to come from; a wildcard: the kernel chooses.
#[inline(always)]
fn from(ctx: *mut bpf_sock_addr, hook: Hook) -> Addr {
    match hook {
        Hook::V4 => Addr::from_v4(read!(ctx, msg_src_ip4)),
        Hook::V6 => Addr::from_v6([
            read!(ctx, msg_src_ip6[0]),
            read!(ctx, msg_src_ip6[1]),
            read!(ctx, msg_src_ip6[2]),
            read!(ctx, msg_src_ip6[3]),
        ]),
    }
}

/// Has the datagram come from where one to `dst` would.
#[inline(always)]
fn send_from(
    ctx: *mut bpf_sock_addr,
    hook: Hook,
    identity: &Identity,
    tables: &KernelTables,
    dst: &Addr,
    over_lo: bool,
) {
    let source = source::of(identity, tables, dst, over_lo);
    if source.is_wildcard() {
        return;
    }
    match hook {
        Hook::V4 => write!(ctx, bpf_sock_addr.msg_src_ip4 = source.v4()),
        Hook::V6 => {
            write!(ctx, bpf_sock_addr.msg_src_ip6[0] = source.words[0]);
            write!(ctx, bpf_sock_addr.msg_src_ip6[1] = source.words[1]);
            write!(ctx, bpf_sock_addr.msg_src_ip6[2] = source.words[2]);
            write!(ctx, bpf_sock_addr.msg_src_ip6[3] = source.words[3]);
        }
    }
}
