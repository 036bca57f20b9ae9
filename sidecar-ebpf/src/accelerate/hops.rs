//! The maps of acceleration. Pinned like the others, and made only where a workload asks for it.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_INGRESS, bpf_sock_ops},
    helpers::generated::bpf_map_delete_elem,
    macros::map,
    maps::{LruHashMap, PerCpuArray, SockHash},
    programs::{SkMsgContext, SockOpsContext},
};
use sidecar_common::accelerate::{Accelerated, Ends, Hop};

/// Accelerated connections, by their ends as the application sees them. One that is evicted is not
/// accelerated any more, and its ends stay members until they close.
#[map]
static HOPS: LruHashMap<Ends, Hop> = LruHashMap::pinned(16_384, 0);
/// Sockets that have joined, by their ends as they see them: what they send, the map's program sees,
/// and hands over to others of them. (So the program holds the map, and the map the program: until
/// user space has the map no more, when the kernel takes the program out of it.)
#[map]
static MEMBERS: SockHash<Ends> = SockHash::pinned(32_768, 0);
/// See [`Accelerated`].
#[map]
static ACCELERATED: PerCpuArray<u64> = PerCpuArray::pinned(Accelerated::COUNT, 0);

/// Both ends as the socket of this call sees them; `$of`: the context's own structure, whose fields
/// are called alike in `bpf_sock_ops` and `sk_msg_md`.
macro_rules! ends {
    ($ctx:expr, $of:ident) => {
        sidecar_common::accelerate::Ends {
            // SAFETY: the context is the kernel's own.
            netns: unsafe {
                aya_ebpf::helpers::generated::bpf_get_netns_cookie(aya_ebpf::EbpfContext::as_ptr(
                    $ctx,
                ))
            },
            here: sidecar_ebpf::ctx::read!($ctx.$of, local_ip4),
            there: sidecar_ebpf::ctx::read!($ctx.$of, remote_ip4),
            here_port: sidecar_ebpf::ctx::read!($ctx.$of, local_port) as u16,
            // A big-endian 16-bit port in the upper half of a big-endian word.
            there_port: u32::from_be(sidecar_ebpf::ctx::read!($ctx.$of, remote_port)) as u16,
            pad: 0,
        }
    };
}
pub(crate) use ends;

/// What is known of a connection; `ends` as the application sees them.
#[inline(always)]
pub fn hop(ends: &Ends) -> Option<&'static mut Hop> {
    let hop = HOPS.get_ptr_mut(ends)?;
    // SAFETY: memory of the map, which is not freed while a program uses it. An LRU map may give it to
    // another connection meanwhile, and programs at both ends may write at once: what is written then
    // decides whether a message is handed over, never to whom, as `MEMBERS` is asked by the ends.
    Some(unsafe { &mut *hop })
}

/// Begins to know a connection. False: no memory.
#[inline(always)]
pub fn begin(ends: &Ends, hop: &Hop) -> bool {
    HOPS.insert(ends, hop, 0).is_ok()
}

/// Forgets a connection.
#[inline(always)]
pub fn forget(ends: &Ends) {
    let _ = HOPS.remove(ends);
}

/// Has the socket of this call join; `ends` as it sees them. False: the map is full, or the kernel does
/// not take the socket (it has a protocol above TCP).
#[inline(always)]
pub fn join(ctx: &SockOpsContext, ends: &mut Ends) -> bool {
    // SAFETY: the context is the kernel's own; only its address is passed on.
    let ops = unsafe { &mut *ctx.as_ptr().cast::<bpf_sock_ops>() };
    MEMBERS.update(ends, ops, 0).is_ok()
}

/// Has the socket with these ends leave.
#[inline(always)]
pub fn leave(ends: &Ends) {
    let key: *const c_void = (&raw const *ends).cast();
    // SAFETY: a map of the key's type; a key that is not there does not matter.
    unsafe { bpf_map_delete_elem((&raw const MEMBERS).cast_mut().cast(), key.cast_mut()) };
}

/// Has the message of this call be handed over to the socket with these ends. False: it is not there.
#[inline(always)]
pub fn hand_over(ctx: &SkMsgContext, to: &mut Ends) -> bool {
    /// `SK_PASS`.
    const PASS: i64 = 1;
    MEMBERS.redirect_msg(SkMsgContext::new(ctx.msg), to, BPF_F_INGRESS.into()) == PASS
}

/// Counts: one of [`Accelerated`].
#[inline(always)]
pub fn count(what: u32) {
    if let Some(counter) = ACCELERATED.get_ptr_mut(what) {
        // SAFETY: a pointer into this CPU's slot; what preempts it may lose a count.
        unsafe { *counter += 1 };
    }
}
