//! Whether somebody listens, by the kernel's own tables: as a connection made now would find.

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_addr, bpf_sock_tuple},
    helpers::generated::{bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release},
};
use sidecar_common::{Endpoint, decide::Transport};

/// `BPF_F_CURRENT_NETNS`: the namespace of the context's socket.
const CURRENT_NETNS: u64 = u64::MAX;

/// `bpf_sock_tuple` of IPv4.
#[repr(C)]
struct TupleV4 {
    src: u32,
    dst: u32,
    /// 0: no connection comes from it, so that no established one is found, and the `sk_lookup`
    /// program, which runs for this as for a connection, knows that it is none.
    src_port: u16,
    dst_port: u16,
}

/// `bpf_sock_tuple` of IPv6.
#[repr(C)]
struct TupleV6 {
    src: [u32; 4],
    dst: [u32; 4],
    /// As of IPv4.
    src_port: u16,
    dst_port: u16,
}

/// Whether a loopback endpoint is listened on (TCP), or bound (UDP), in the socket's namespace.
#[inline(always)]
pub fn is_listening(ctx: *mut bpf_sock_addr, at: &Endpoint, transport: Transport) -> bool {
    let dst_port = at.port.to_be();
    if at.addr.is_v4() {
        let mut tuple = TupleV4 {
            src: at.addr.v4(),
            dst: at.addr.v4(),
            src_port: 0,
            dst_port,
        };
        is_found(ctx, &raw mut tuple, transport)
    } else {
        let mut tuple = TupleV6 {
            src: at.addr.words,
            dst: at.addr.words,
            src_port: 0,
            dst_port,
        };
        is_found(ctx, &raw mut tuple, transport)
    }
}

#[inline(always)]
fn is_found<T>(ctx: *mut bpf_sock_addr, tuple: *mut T, transport: Transport) -> bool {
    let size = size_of::<T>() as u32;
    let tuple = tuple.cast::<bpf_sock_tuple>();
    // SAFETY: the context is the hook's own; the tuple has the size that is told, by which the
    // helper knows its family.
    let found: *mut bpf_sock = unsafe {
        match transport {
            Transport::Tcp => bpf_sk_lookup_tcp(ctx.cast(), tuple, size, CURRENT_NETNS, 0),
            Transport::Udp => bpf_sk_lookup_udp(ctx.cast(), tuple, size, CURRENT_NETNS, 0),
        }
    };
    if found.is_null() {
        return false;
    }
    // SAFETY: what the helper found is ours to give back, once.
    unsafe { bpf_sk_release(found.cast()) };
    true
}
