//! sock_ops of accelerated workloads: both ends of a connection to the proxy join the map when it is
//! established, and leave it once it was demoted.

use aya_ebpf::{
    EbpfContext as _, bindings::bpf_sock, helpers::generated::bpf_get_socket_cookie,
    programs::SockOpsContext,
};
use sidecar_common::{
    accelerate::{Accelerated, End, Ends, Hop, IDLE_REFERENCES, Side},
    standin,
    values::PlanHeader,
};

use sidecar_ebpf::{ctx::read, maps, sock_ops::PASSIVE_ESTABLISHED_CB};

use crate::{
    hops::{self, ends},
    peek::Tcp,
};

/// `BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB`: a connection was answered.
const ACTIVE_ESTABLISHED_CB: u32 = 4;
/// `BPF_SOCK_OPS_RTT_CB`: something that was sent by TCP has been acknowledged.
const RTT_CB: u32 = 12;
/// `BPF_SOCK_OPS_RTT_CB_FLAG`.
const RTT_CB_FLAG: u32 = 1 << 3;

/// The sock_ops hook. Its return value is not used by the kernel for these operations.
#[inline(always)]
pub fn sock_ops(ctx: &SockOpsContext) -> u32 {
    let op = read!(ctx.ops, op);
    if op == ACTIVE_ESTABLISHED_CB {
        if standin::slot_of_v4(read!(ctx.ops, remote_ip4)).is_some() {
            connected(ctx);
        }
    } else if op == PASSIVE_ESTABLISHED_CB {
        if standin::slot_of_v4(read!(ctx.ops, local_ip4)).is_some() {
            accepted(ctx);
        }
    } else if op == RTT_CB {
        acknowledged(ctx);
    }
    1
}

/// The application's end joins, if its reader does not block.
#[inline(always)]
fn connected(ctx: &SockOpsContext) {
    let Some(tcp) = Tcp::of(socket(ctx)) else {
        return;
    };
    let mut ends = ends!(ctx, ops);
    // What an earlier connection with these ends has left is not believed: see `accepted`.
    if tcp.is_non_blocking() != Some(true) || !is_wanted(ends.there_port) {
        return;
    }
    let hop = Hop {
        app: End {
            flags: End::NON_BLOCKING,
            ..end(ctx, tcp)
        },
        ..Hop::default()
    };
    if !hops::begin(&ends, &hop) {
        return;
    }
    if hops::join(ctx, &mut ends) {
        call_back(ctx, &ends, Side::App);
    } else {
        hops::forget(&ends);
    }
}

/// The proxy's end joins after it.
#[inline(always)]
fn accepted(ctx: &SockOpsContext) {
    let Some(tcp) = Tcp::of(socket(ctx)) else {
        return;
    };
    let mut ends = ends!(ctx, ops);
    let app = ends.seen_from_there();
    let Some(hop) = hops::hop(&app) else {
        return;
    };
    // Else what is found is an earlier connection's: where the application's end has not joined, or
    // has not been answered yet (TCP Fast Open).
    if hop.proxy.socket != 0 || !Tcp::at(hop.app.socket).is(hop.app.cookie) {
        return;
    }
    if !hops::join(ctx, &mut ends) {
        return;
    }
    hop.proxy = end(ctx, tcp);
    hops::count(Accelerated::JOINED);
    call_back(ctx, &app, Side::Proxy);
}

/// An end of a demoted connection leaves, if nothing can be in the queue that goes with it: nothing
/// is, and the other end sends nothing right now. (What it sends from now on, TCP has.)
#[inline(always)]
fn acknowledged(ctx: &SockOpsContext) {
    let own = ends!(ctx, ops);
    let there = own.seen_from_there();
    let is_app = standin::slot_of_v4(own.there).is_some();
    let app = if is_app { &own } else { &there };
    let Some(hop) = hops::hop(app) else {
        return;
    };
    if hop.demoted == 0 {
        return;
    }
    let (end, peer) = if is_app {
        (&mut hop.app, &hop.proxy)
    } else {
        (&mut hop.proxy, &hop.app)
    };
    let Some(tcp) = Tcp::of(socket(ctx)) else {
        return;
    };
    if tcp.queue_is_empty() != Some(true) || !is_idle(peer) {
        return;
    }
    hops::leave(&own);
    hops::count(Accelerated::LEFT);
    end.flags |= End::LEFT;
    if end.flags & End::CALLED_BACK != 0 {
        let flags = read!(ctx.ops, bpf_sock_ops_cb_flags) & !RTT_CB_FLAG;
        let _ = ctx.set_cb_flags(flags as i32);
    }
}

/// Whether nobody is within a system call by which this end sends what was looked at before the
/// connection was demoted.
#[inline(always)]
fn is_idle(end: &End) -> bool {
    if end.socket == 0 || end.flags & End::LEFT != 0 {
        return true;
    }
    let tcp = Tcp::at(end.socket);
    // One that is gone sends nothing.
    !tcp.is(end.cookie)
        || tcp
            .references()
            .is_none_or(|references| references <= IDLE_REFERENCES)
}

/// Whether the workload's plan asks for connections to this port to be accelerated.
#[inline(always)]
fn is_wanted(port: u16) -> bool {
    let identity = maps::identity();
    match maps::plan_of(identity.workload) {
        Ok(Some((_, header))) => {
            header.flags & PlanHeader::ACCELERATE != 0 && header.outbound_port == port
        }
        _ => false,
    }
}

/// Has [`acknowledged`] be called for this socket.
#[inline(always)]
fn call_back(ctx: &SockOpsContext, app: &Ends, side: Side) {
    let flags = read!(ctx.ops, bpf_sock_ops_cb_flags);
    if flags & RTT_CB_FLAG != 0 || ctx.set_cb_flags((flags | RTT_CB_FLAG) as i32).is_err() {
        return;
    }
    if let Some(hop) = hops::hop(app) {
        match side {
            Side::App => hop.app.flags |= End::CALLED_BACK,
            Side::Proxy => hop.proxy.flags |= End::CALLED_BACK,
        }
    }
}

#[inline(always)]
fn end(ctx: &SockOpsContext, tcp: Tcp) -> End {
    End {
        socket: tcp.address(),
        // SAFETY: the context is the kernel's own.
        cookie: unsafe { bpf_get_socket_cookie(ctx.as_ptr()) },
        ..End::default()
    }
}

#[inline(always)]
fn socket(ctx: &SockOpsContext) -> *mut bpf_sock {
    read!(ctx.ops, __bindgen_anon_2.sk)
}
