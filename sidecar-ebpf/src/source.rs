//! Which address a call that is led to the proxy comes from. A socket that is not bound would get
//! a loopback address, as what it is led to is one; the proxy is to see what the destination
//! would have seen.

use aya_ebpf::{
    bindings::{bpf_sock_addr, sockaddr},
    helpers::generated::bpf_bind,
};
use sidecar_common::{Addr, decide::Tables as _, values::Identity};

use crate::{
    maps::KernelTables,
    sock_addr::Hook,
    sockaddr::{SockaddrIn, SockaddrIn6},
};

/// The source of a call to `dst`; a wildcard: whatever the kernel chooses. `over_lo`: `dst` may be
/// the workload's own.
#[inline(always)]
pub fn of(identity: &Identity, tables: &KernelTables, dst: &Addr, over_lo: bool) -> Addr {
    if dst.is_loopback() || dst.is_wildcard() {
        return dst.wildcard();
    }
    if over_lo && tables.is_local(dst) {
        return *dst;
    }
    if identity.flags & Identity::ROUTED != 0
        && let Some(route) = tables.route(dst)
    {
        return route.source;
    }
    if dst.is_v4() {
        Addr::from_v4(identity.source_v4)
    } else {
        identity.source_v6
    }
}

/// Binds the socket of a connect hook to an address. Where that fails it stays as it is: the call
/// goes on, from another address.
#[inline(always)]
pub fn bind(ctx: *mut bpf_sock_addr, hook: Hook, source: &Addr) {
    if source.is_wildcard() {
        return;
    }
    match hook {
        Hook::V4 => {
            let mut addr = SockaddrIn::new(source, 0);
            // SAFETY: the context is the hook's own; the address has the size that is told.
            unsafe {
                bpf_bind(
                    ctx,
                    (&raw mut addr).cast::<sockaddr>(),
                    size_of::<SockaddrIn>() as i32,
                )
            };
        }
        Hook::V6 => {
            let mut addr = SockaddrIn6::new(source, 0);
            // SAFETY: as above.
            unsafe {
                bpf_bind(
                    ctx,
                    (&raw mut addr).cast::<sockaddr>(),
                    size_of::<SockaddrIn6>() as i32,
                )
            };
        }
    }
}
