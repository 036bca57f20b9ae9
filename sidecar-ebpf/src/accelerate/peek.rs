//! Looking into the kernel's sockets, at the places that its BTF tells. Nothing is believed of an
//! address: what cannot be read is `None`, and who is there is told by the socket's cookie.

use aya_ebpf::{
    bindings::bpf_sock,
    helpers::{bpf_probe_read_kernel, generated::bpf_skc_to_tcp_sock},
};
use sidecar_common::accelerate::{O_NONBLOCK, Offsets, USER_DATA_FLAGS, ZEROCOPY};

/// Set by the loader.
#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets {
    cookie: 0,
    state: 0,
    flags: 0,
    err: 0,
    low_water: 0,
    user_data: 0,
    socket: 0,
    file: 0,
    file_flags: 0,
    ulp: 0,
    write_seq: 0,
    copied_seq: 0,
    queue: 0,
    references: 0,
};

/// A field of `OFFSETS`, which the verifier knows.
macro_rules! offset {
    ($field:ident) => {{
        // SAFETY: a plain constant; volatile because the loader replaces it.
        unsafe { core::ptr::read_volatile(&raw const OFFSETS.$field) }
    }};
}

/// The kernel's address of a `struct tcp_sock`, which is that of its `struct sock` too.
#[derive(Clone, Copy)]
pub struct Tcp(u64);

impl Tcp {
    /// The TCP socket of a context; `None`: it has none.
    #[inline(always)]
    pub fn of(sk: *mut bpf_sock) -> Option<Self> {
        if sk.is_null() {
            return None;
        }
        // SAFETY: a socket of the context's, not null.
        let tcp = unsafe { bpf_skc_to_tcp_sock(sk.cast()) };
        (!tcp.is_null()).then(|| Self(tcp as u64))
    }

    /// What was at this address. See [`Tcp::is`].
    #[inline(always)]
    pub const fn at(address: u64) -> Self {
        Self(address)
    }

    /// Its address.
    #[inline(always)]
    pub const fn address(self) -> u64 {
        self.0
    }

    /// Whether it is the socket with this cookie. One that was freed may still look so: its state
    /// does not.
    #[inline(always)]
    pub fn is(self, cookie: u64) -> bool {
        read::<u64>(self.0, offset!(cookie)) == Some(cookie)
    }

    /// `skc_state`.
    #[inline(always)]
    pub fn state(self) -> Option<u8> {
        read(self.0, offset!(state))
    }

    /// `write_seq`: the number of the next byte that is sent by TCP.
    #[inline(always)]
    pub fn write_seq(self) -> Option<u32> {
        read(self.0, offset!(write_seq))
    }

    /// `copied_seq`: the number of the next byte of TCP that is read.
    #[inline(always)]
    pub fn copied_seq(self) -> Option<u32> {
        read(self.0, offset!(copied_seq))
    }

    /// `sk_rcvlowat`.
    #[inline(always)]
    pub fn low_water(self) -> Option<i32> {
        read(self.0, offset!(low_water))
    }

    /// Whether there is a protocol above it (kTLS).
    #[inline(always)]
    pub fn has_ulp(self) -> Option<bool> {
        read::<u64>(self.0, offset!(ulp)).map(|ops| ops != 0)
    }

    /// Whether it has an error, or sends without copying.
    #[inline(always)]
    pub fn is_odd(self) -> Option<bool> {
        let err: i32 = read(self.0, offset!(err))?;
        let flags: u64 = read(self.0, offset!(flags))?;
        Some(err != 0 || flags & ZEROCOPY != 0)
    }

    /// Whether whoever holds it does not block; `None`: nobody holds it (it waits for accept(2), or
    /// is closed).
    #[inline(always)]
    pub fn is_non_blocking(self) -> Option<bool> {
        let socket: u64 = read(self.0, offset!(socket))?;
        let file: u64 = read(socket, offset!(file))?;
        let flags: u32 = read(file, offset!(file_flags))?;
        Some(flags & O_NONBLOCK != 0)
    }

    /// Its `sk_psock`: what it has beside TCP as a member of a sockhash.
    #[inline(always)]
    fn psock(self) -> Option<u64> {
        let data: u64 = read(self.0, offset!(user_data))?;
        match data & !USER_DATA_FLAGS {
            0 => None,
            psock => Some(psock),
        }
    }

    /// Whether nothing is in the queue beside its receive queue; `None`: it has none.
    #[inline(always)]
    pub fn queue_is_empty(self) -> Option<bool> {
        let queue = self.psock()? + u64::from(offset!(queue));
        // A list without elements leads to itself.
        let first: u64 = read(queue, 0)?;
        Some(first == queue)
    }

    /// How many use its `sk_psock`; `None`: it has none.
    #[inline(always)]
    pub fn references(self) -> Option<u32> {
        read(self.psock()?, offset!(references))
    }
}

#[inline(always)]
fn read<T>(base: u64, offset: u32) -> Option<T> {
    let field = (base + u64::from(offset)) as *const T;
    // SAFETY: the helper fails where there is no memory.
    unsafe { bpf_probe_read_kernel(field) }.ok()
}
