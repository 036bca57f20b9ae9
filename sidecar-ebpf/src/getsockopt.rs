//! cgroup getsockopt: answers `SO_ORIGINAL_DST` to the workload's proxy. There is no NAT, so the
//! kernel itself has no answer.

use aya_ebpf::bindings::{bpf_sock, bpf_sockopt};
use sidecar_common::{
    Endpoint,
    decide::{self, Tables as _},
    keys::Tuple,
    values::{Identity, Original, PlanHeader},
};

use crate::{
    ctx::{read, read_addr, write},
    maps::{self, KernelTables},
    sock_addr::{ALLOW, caller},
    sockaddr::{SockaddrIn, SockaddrIn6},
};

const SOL_IP: i32 = 0;
const SOL_IPV6: i32 = 41;
/// `SO_ORIGINAL_DST` and `IP6T_SO_ORIGINAL_DST` share the number.
const SO_ORIGINAL_DST: i32 = 80;

/// The getsockopt hook. Whatever is not ours keeps the kernel's own answer or error.
#[inline(always)]
pub fn getsockopt(ctx: *mut bpf_sockopt) -> i32 {
    if read!(ctx, optname) != SO_ORIGINAL_DST {
        return ALLOW;
    }
    let level = read!(ctx, level);
    if level != SOL_IP && level != SOL_IPV6 {
        return ALLOW;
    }
    let identity = maps::identity();
    if identity.workload == 0 {
        return ALLOW;
    }
    let sk: *mut bpf_sock = read!(ctx, __bindgen_anon_1.sk);
    if sk.is_null() {
        return ALLOW;
    }
    if let Some(original) = original(sk, identity) {
        answer(ctx, level, &original);
    }
    ALLOW
}

/// Outbound: what the client end's connect asked for, also if capture was suspended, or handed over
/// to another set, meanwhile. Inbound: see [`own_address`].
#[inline(always)]
fn original(sk: *mut bpf_sock, identity: &Identity) -> Option<Endpoint> {
    let plan = maps::known_plan_of(identity.workload);
    let tables = KernelTables {
        workload: identity.workload,
    };
    if let Some((plan, header)) = plan
        && (header.flags & PlanHeader::PROXIED == 0
            || !decide::is_proxy(&tables, plan, header, &caller(identity)))
    {
        return None;
    }
    let (local, peer) = ends(sk);
    if let Some(destination) = maps::destination(identity.workload, &local.addr) {
        return Some(destination);
    }
    // SAFETY: checked for null by the caller.
    if let Some(original) = unsafe { maps::cgroup::recall(sk) }
        && original.kind == Original::ACCEPTED
    {
        return Some(original.dst);
    }
    // Without memory it was not handed over. A transparent proxy's call to its own workload is not.
    let noted = maps::original(&Tuple {
        workload: identity.workload,
        client: peer,
        server: local,
    });
    if let Some(original) = noted
        && (original.kind == Original::REDIRECTED || original.kind == Original::CAPTURED)
    {
        return Some(original.dst);
    }
    let (_, header) = plan?;
    own_address(&tables, header, &local, &peer)
}

/// The accepted socket's own local address, unless that is a capture port that the workload itself
/// called directly: answering would make the proxy call itself, over and over. Somebody else who
/// does that is told, as by `istio-iptables`; the call that the proxy then makes to itself is the
/// last one.
#[inline(always)]
fn own_address(
    tables: &KernelTables,
    header: &PlanHeader,
    local: &Endpoint,
    peer: &Endpoint,
) -> Option<Endpoint> {
    let is_capture_port = local.port == header.outbound_port
        || local.port == header.inbound_port
        || local.port == header.dns_port;
    let is_own = || peer.addr.is_loopback() || tables.is_local(&peer.addr);
    (!is_capture_port || !local.addr.is_loopback() && !is_own()).then_some(*local)
}

#[inline(always)]
fn ends(sk: *mut bpf_sock) -> (Endpoint, Endpoint) {
    let family = read!(sk, family);
    let local = read_addr!(sk, family, src_ip4, src_ip6);
    let peer = read_addr!(sk, family, dst_ip4, dst_ip6);
    // src_port is in native order, dst_port is a big-endian 16-bit field.
    (
        Endpoint::new(local, read!(sk, src_port) as u16),
        Endpoint::new(peer, u16::from_be(read!(sk, dst_port))),
    )
}

#[inline(always)]
fn answer(ctx: *mut bpf_sockopt, level: i32, original: &Endpoint) {
    let start: *mut u8 = read!(ctx, __bindgen_anon_2.optval).cast();
    let end: *mut u8 = read!(ctx, __bindgen_anon_3.optval_end).cast();
    if level == SOL_IP {
        let buffer = start.cast::<SockaddrIn>();
        // SAFETY: only compared with the end, as the verifier wants it.
        if !original.addr.is_v4() || unsafe { buffer.add(1) }.cast::<u8>() > end {
            return;
        }
        // SAFETY: the buffer is long enough, checked just now.
        unsafe {
            buffer.write_unaligned(SockaddrIn::new(&original.addr, original.port));
        }
        write!(ctx, bpf_sockopt.optlen = size_of::<SockaddrIn>() as u32);
    } else {
        let buffer = start.cast::<SockaddrIn6>();
        // SAFETY: only compared with the end.
        if unsafe { buffer.add(1) }.cast::<u8>() > end {
            return;
        }
        // SAFETY: the buffer is long enough, checked just now.
        unsafe {
            buffer.write_unaligned(SockaddrIn6::new(&original.addr, original.port));
        }
        write!(ctx, bpf_sockopt.optlen = size_of::<SockaddrIn6>() as u32);
    }
    write!(ctx, bpf_sockopt.retval = 0_u32);
}
