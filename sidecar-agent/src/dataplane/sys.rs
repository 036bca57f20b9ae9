//! The system calls that neither aya 0.14 nor rustix offers: BPF links for every attach type,
//! maps whose key aya has no type for, and the memory-mapped `WORKLOADS` array.

use std::{
    ffi::c_long,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use sidecar_common::values::Identity;

const BPF_MAP_UPDATE_ELEM: u32 = 2;
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
    let fd = bpf(BPF_LINK_CREATE, &attr)?;
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
    bpf(BPF_MAP_UPDATE_ELEM, &attr).map(drop)
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

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn bpf<T>(command: u32, attr: &T) -> io::Result<c_long> {
    // SAFETY: `attr` is the attribute structure of `command`, zero beyond what is set, and its
    // size is given; pointers inside it are valid for the duration of the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attr, size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// The `WORKLOADS` array, mapped: a switch of plan is one aligned store that programs see whole.
pub struct WorkloadSlots {
    base: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: shared memory reached through atomics only.
unsafe impl Send for WorkloadSlots {}
// SAFETY: as above.
unsafe impl Sync for WorkloadSlots {}

impl WorkloadSlots {
    /// Maps `len` slots of the array map `map` (created with `BPF_F_MMAPABLE`).
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

    /// Stores the plan of a workload. A slot out of range is ignored.
    pub fn store(&self, slot: u32, plan: u32) {
        if let Some(word) = self.word(slot) {
            word.store(u64::from(plan), Ordering::Release);
        }
    }

    /// The plan of a workload; 0 for a slot out of range.
    pub fn load(&self, slot: u32) -> u64 {
        self.word(slot)
            .map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn word(&self, slot: u32) -> Option<&AtomicU64> {
        let slot = slot as usize;
        // SAFETY: within the mapping, which lives as long as self; page-aligned base.
        (slot < self.len).then(|| unsafe { self.base.add(slot).as_ref() })
    }
}

impl Drop for WorkloadSlots {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`; no reference into it outlives self.
        let _ =
            unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len * size_of::<u64>()) };
    }
}

const BPF_PROG_QUERY: u32 = 16;

/// Most programs that are asked for at one hook; the kernel allows 64 at a cgroup.
const MOST_ATTACHED: usize = 64;

/// `union bpf_attr` of `BPF_PROG_QUERY`, as far as kernel 5.18 has it.
#[repr(C, align(8))]
#[derive(Default)]
struct ProgQuery {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    /// Written by the kernel.
    attach_flags: u32,
    prog_ids: u64,
    /// Room in `prog_ids`; the kernel writes how many there are.
    prog_cnt: u32,
    pad: u32,
    prog_attach_flags: u64,
}

/// What is attached at one hook of a cgroup or a network namespace, not counting what cgroups above
/// it have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attached {
    /// How: `BPF_F_ALLOW_OVERRIDE` (1), `BPF_F_ALLOW_MULTI` (2).
    pub flags: u32,
    /// Ids of the programs.
    pub programs: Vec<u32>,
}

/// Asks what is attached. Needs `CAP_NET_ADMIN` or `CAP_SYS_ADMIN`.
pub fn prog_query(target: BorrowedFd<'_>, attach_type: AttachType) -> io::Result<Attached> {
    let mut ids = vec![0_u32; MOST_ATTACHED];
    let mut attr = ProgQuery {
        target_fd: raw(target),
        attach_type: attach_type as u32,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: u32::try_from(MOST_ATTACHED).map_err(io::Error::other)?,
        ..ProgQuery::default()
    };
    // SAFETY: `attr` is the attribute structure of this command, with its size; `prog_ids` has room
    // for `prog_cnt` ids and lives until the call returns; the kernel writes to both.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_QUERY,
            &raw mut attr,
            size_of::<ProgQuery>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    ids.truncate(attr.prog_cnt as usize);
    Ok(Attached {
        flags: attr.attach_flags,
        programs: ids,
    })
}

/// Moves the calling thread into network and mount namespaces of its own, which end with it. Its
/// mounts are copies of those it had, and still connected to them. Needs `CAP_SYS_ADMIN`.
pub fn leave_namespaces() -> io::Result<()> {
    // SAFETY: no pointers; descriptors and memory stay shared with the other threads.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
