//! What the running kernel has, and how its lacks are made up for.

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock,
    helpers::{
        bpf_probe_read_kernel,
        generated::{bpf_get_netns_cookie, bpf_skc_to_tcp_sock},
    },
    programs::SockOpsContext,
};
use sidecar_common::kernel::Kernel;

/// Set by the loader.
#[unsafe(no_mangle)]
static KERNEL: Kernel = Kernel {
    features: 0,
    sock_netns: 0,
    netns_inode: 0,
};

/// Whether the kernel has one of `Kernel`'s features. The verifier knows the answer.
#[inline(always)]
pub fn has(feature: u32) -> bool {
    // SAFETY: a plain constant; volatile because the loader replaces it.
    let features = unsafe { core::ptr::read_volatile(&raw const KERNEL.features) };
    features & feature != 0
}

/// The network namespace of this socket of the context, as `Identity::netns` has it; `None`: there
/// is no telling.
#[inline(always)]
pub fn netns(ctx: &SockOpsContext, sk: *mut bpf_sock) -> Option<u64> {
    if has(Kernel::NETNS_COOKIE) {
        // SAFETY: the context is the kernel's own.
        return Some(unsafe { bpf_get_netns_cookie(ctx.as_ptr()) });
    }
    if !has(Kernel::NETNS_INODE) {
        return None;
    }
    // SAFETY: plain constants, as in `has`.
    let (sock_netns, netns_inode) = unsafe {
        (
            core::ptr::read_volatile(&raw const KERNEL.sock_netns),
            core::ptr::read_volatile(&raw const KERNEL.netns_inode),
        )
    };
    // Of a `bpf_sock` nothing but its own fields can be reached.
    // SAFETY: a socket of the context's, not null.
    let sk = unsafe { bpf_skc_to_tcp_sock(sk.cast()) };
    if sk.is_null() {
        return None;
    }
    let field = sk.cast::<u8>().wrapping_add(sock_netns as usize);
    // SAFETY: the helper fails where there is no memory; a socket holds its namespace.
    let netns = unsafe { bpf_probe_read_kernel(field.cast::<*const u8>()) }.ok()?;
    let field = netns.wrapping_add(netns_inode as usize);
    // SAFETY: as above.
    let inode = unsafe { bpf_probe_read_kernel(field.cast::<u32>()) }.ok()?;
    Some(u64::from(inode))
}
