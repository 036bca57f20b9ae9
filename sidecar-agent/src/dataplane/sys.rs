//! The system calls that neither aya 0.14 nor rustix offers: BPF links for every attach type,
//! maps whose key aya has no type for, batches, and memory-mapped arrays.

use std::{
    ffi::c_long,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::AtomicU64,
};

use sidecar_common::values::Identity;
use tokio::io::{Interest, unix::AsyncFd};

use super::Tap;

const BPF_MAP_UPDATE_ELEM: u32 = 2;
const BPF_MAP_LOOKUP_BATCH: u32 = 24;
const BPF_LINK_CREATE: u32 = 28;

/// `enum bpf_attach_type`, the ones used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum AttachType {
    /// `BPF_CGROUP_SOCK_OPS`.
    SockOps = 3,
    /// `BPF_CGROUP_INET4_CONNECT`.
    Connect4 = 10,
    /// `BPF_CGROUP_INET6_CONNECT`.
    Connect6 = 11,
    /// `BPF_CGROUP_UDP4_SENDMSG`.
    Sendmsg4 = 14,
    /// `BPF_CGROUP_UDP6_SENDMSG`.
    Sendmsg6 = 15,
    /// `BPF_CGROUP_UDP4_RECVMSG`.
    Recvmsg4 = 19,
    /// `BPF_CGROUP_UDP6_RECVMSG`.
    Recvmsg6 = 20,
    /// `BPF_CGROUP_GETSOCKOPT`.
    Getsockopt = 21,
    /// `BPF_CGROUP_INET4_GETPEERNAME`.
    Getpeername4 = 29,
    /// `BPF_CGROUP_INET6_GETPEERNAME`.
    Getpeername6 = 30,
    /// `BPF_SK_LOOKUP`.
    SkLookup = 36,
}

/// `union bpf_attr` of `BPF_LINK_CREATE`.
#[repr(C, align(8))]
#[derive(Default)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

/// `union bpf_attr` of `BPF_MAP_UPDATE_ELEM`.
#[repr(C, align(8))]
#[derive(Default)]
struct MapUpdate {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `union bpf_attr` of `BPF_MAP_LOOKUP_BATCH`.
#[repr(C, align(8))]
#[derive(Default)]
struct MapBatch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Attaches a program to a cgroup or a network namespace. The link lives as long as its
/// descriptor (or a pin).
pub fn link_create(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    attach_type: AttachType,
) -> io::Result<OwnedFd> {
    let attr = LinkCreate {
        prog_fd: raw(program),
        target_fd: raw(target),
        attach_type: attach_type as u32,
        flags: 0,
    };
    let fd = bpf(BPF_LINK_CREATE, attr)?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: BPF_LINK_CREATE has just returned this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets the identity in the cgroup storage of the cgroup with this inode id. The kernel replaces
/// the whole value at once. Fails with `ENOENT` where no program is attached to that cgroup.
pub fn set_identity(map: BorrowedFd<'_>, cgroup: u64, identity: &Identity) -> io::Result<()> {
    let attr = MapUpdate {
        map_fd: raw(map),
        key: (&raw const cgroup) as u64,
        value: (&raw const *identity) as u64,
        ..MapUpdate::default()
    };
    bpf(BPF_MAP_UPDATE_ELEM, attr).map(drop)
}

/// The cookie of the network namespace that a socket is in, as `bpf_get_netns_cookie` tells it
/// (kernel 5.14).
pub fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let mut cookie = 0_u64;
    let mut len = 8;
    // SAFETY: the buffer and its length are valid for the duration of the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(cookie)
    }
}

/// Lets a socket answer from addresses that are not local (`IP_TRANSPARENT`, which IPv6 sockets
/// share). Needs `CAP_NET_ADMIN` in the user namespace of the socket's network.
pub fn set_transparent(socket: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the value and its size are valid for the duration of the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_IP,
            libc::IP_TRANSPARENT,
            (&raw const on).cast(),
            4,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// The user namespace that a network namespace belongs to.
pub fn owning_userns(netns: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    /// `_IO(0xb7, 0x1)`.
    const NS_GET_USERNS: libc::c_ulong = 0xb701;
    // SAFETY: the request takes no argument.
    let fd = unsafe { libc::ioctl(netns.as_raw_fd(), NS_GET_USERNS) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just returned this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Has the runtime watch the ring for events.
pub fn watch(tap: Tap) -> io::Result<AsyncFd<Tap>> {
    // SAFETY: a tap's descriptor is the one of the map that it owns for as long as it lives.
    Ok(unsafe { AsyncFd::register_with_interest(tap, Interest::READABLE) }?)
}

/// A value as its bytes are in memory; `None`: they are not as many.
pub fn read_pod<T: aya::Pod>(bytes: &[u8]) -> Option<T> {
    // SAFETY: as many bytes as the type has, every pattern of which is valid; aligned or not.
    (bytes.len() == size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn bpf<T>(command: u32, mut attr: T) -> io::Result<c_long> {
    bpf_mut(command, &mut attr)
}

/// Of a command that answers in its attribute structure.
fn bpf_mut<T>(command: u32, attr: &mut T) -> io::Result<c_long> {
    // SAFETY: `attr` is the attribute structure of `command`, zero beyond what is set, and its
    // size is given; pointers inside it are valid for the duration of the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// How many entries a hash map has, counted in batches (`BPF_MAP_LOOKUP_BATCH`, kernel 5.6): a call
/// for each thousand of them, and no entry is taken for recently used. `entry`: sizes of key and
/// value. Entries that come and go meanwhile may be missed, or counted twice.
pub fn count_entries(
    map: BorrowedFd<'_>,
    entry: (usize, usize),
    capacity: u32,
) -> io::Result<usize> {
    /// Entries in a call. More than any bucket holds.
    const BATCH: usize = 1024;
    let (mut keys, mut values) = (vec![0_u8; BATCH * entry.0], vec![0_u8; BATCH * entry.1]);
    // Where the next batch begins: the number of a bucket.
    let mut position = 0_u32;
    let mut is_first = true;
    let mut entries = 0;
    // Bounded, should the map grow while it is counted.
    while entries <= capacity as usize {
        let mut attr = MapBatch {
            in_batch: if is_first {
                0
            } else {
                (&raw const position) as u64
            },
            out_batch: (&raw mut position) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: u32::try_from(BATCH).unwrap_or(u32::MAX),
            map_fd: raw(map),
            ..MapBatch::default()
        };
        let result = bpf_mut(BPF_MAP_LOOKUP_BATCH, &mut attr);
        match result {
            Ok(_) => entries += attr.count as usize,
            // The end; what was found before it counts.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                return Ok(entries + attr.count as usize);
            }
            Err(error) => return Err(error),
        }
        is_first = false;
    }
    Ok(entries)
}

/// An array map of `u64`, mapped: each word is stored and read whole, here and by programs.
pub struct MappedWords {
    base: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: shared memory reached through atomics only.
unsafe impl Send for MappedWords {}
// SAFETY: as above.
unsafe impl Sync for MappedWords {}

impl MappedWords {
    /// Maps `len` elements of the array map `map` (created with `BPF_F_MMAPABLE`).
    pub fn map(map: BorrowedFd<'_>, len: u32) -> io::Result<Self> {
        let len = len as usize;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len * size_of::<u64>(),
                rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
                rustix::mm::MapFlags::SHARED,
                map,
                0,
            )
        }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { base, len })
    }

    /// The element with this index; `None`: out of range.
    pub fn get(&self, index: u32) -> Option<&AtomicU64> {
        let index = index as usize;
        // SAFETY: within the mapping, which lives as long as self; page-aligned base.
        (index < self.len).then(|| unsafe { self.base.add(index).as_ref() })
    }
}

impl Drop for MappedWords {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`; no reference into it outlives self.
        let _ =
            unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len * size_of::<u64>()) };
    }
}
