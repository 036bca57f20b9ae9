//! The system calls that neither aya 0.14 nor rustix offers: BPF links for every attach type,
//! maps whose key aya has no type for, batches, and memory-mapped arrays.

pub mod run;

use std::{
    ffi::{CString, c_long},
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    ptr::NonNull,
    sync::atomic::AtomicU64,
};

use sidecar_common::values::Identity;
use tokio::io::{Interest, unix::AsyncFd};

use super::Tap;

const BPF_MAP_LOOKUP_ELEM: u32 = 1;
const BPF_MAP_UPDATE_ELEM: u32 = 2;
const BPF_PROG_LOAD: u32 = 5;
const BPF_OBJ_PIN: u32 = 6;
const BPF_OBJ_GET: u32 = 7;
const BPF_PROG_GET_FD_BY_ID: u32 = 13;
const BPF_OBJ_GET_INFO_BY_FD: u32 = 15;
const BPF_MAP_LOOKUP_BATCH: u32 = 24;
const BPF_LINK_CREATE: u32 = 28;
const BPF_LINK_UPDATE: u32 = 29;
const BPF_LINK_GET_FD_BY_ID: u32 = 30;
const BPF_LINK_GET_NEXT_ID: u32 = 31;

/// `enum bpf_attach_type`, the ones used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum AttachType {
    /// `BPF_CGROUP_INET_EGRESS`.
    Egress = 1,
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

/// `union bpf_attr` of `BPF_LINK_UPDATE`.
#[repr(C, align(8))]
#[derive(Default)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// `union bpf_attr` of `BPF_OBJ_PIN` and `BPF_OBJ_GET`.
#[repr(C, align(8))]
#[derive(Default)]
struct Obj {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// `union bpf_attr` of `BPF_*_GET_FD_BY_ID` and `BPF_*_GET_NEXT_ID`.
#[repr(C, align(8))]
#[derive(Default)]
struct ById {
    id: u32,
    next: u32,
    open_flags: u32,
    pad: u32,
}

/// `union bpf_attr` of `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C, align(8))]
#[derive(Default)]
struct AskInfo {
    bpf_fd: u32,
    len: u32,
    into: u64,
}

/// The head of `struct bpf_link_info`, and as much room as its longest form has.
#[repr(C, align(8))]
struct RawLinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    pad: u32,
    /// Of a cgroup its id, of a network namespace its inode number in the lower half and the type
    /// of attachment in the upper one.
    target: u64,
    /// The type of attachment to a cgroup, in the lower half.
    attach_type: u64,
    rest: [u64; 12],
}

/// `union bpf_attr` of `BPF_MAP_LOOKUP_ELEM` and `BPF_MAP_UPDATE_ELEM`.
#[repr(C, align(8))]
#[derive(Default)]
struct MapElement {
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

/// `union bpf_attr` of `BPF_PROG_LOAD`, as far as kernel 5.9 needs it.
#[repr(C, align(8))]
#[derive(Default)]
struct ProgLoad {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

/// Loads a program that, attached to a cgroup, lets none of its packets leave.
pub fn load_drop_all() -> io::Result<OwnedFd> {
    /// `BPF_PROG_TYPE_CGROUP_SKB`.
    const CGROUP_SKB: u32 = 8;
    /// `r0 = 0; exit`: each `struct bpf_insn` begins with its code.
    const CODE: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 0, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
    let attr = ProgLoad {
        kind: CGROUP_SKB,
        instructions: 2,
        code: CODE.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        name: *b"sidecar_drop\0\0\0\0",
        attach_type: AttachType::Egress as u32,
        ..ProgLoad::default()
    };
    owned(bpf(BPF_PROG_LOAD, &attr)?)
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
    owned(bpf(BPF_LINK_CREATE, &attr)?)
}

/// The descriptor that a command has just returned.
fn owned(fd: c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the caller has it from bpf(2), just now; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Has a link run another program from now on: at once, without a moment in which none runs.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attr = LinkUpdate {
        link_fd: raw(link),
        new_prog_fd: raw(program),
        ..LinkUpdate::default()
    };
    bpf(BPF_LINK_UPDATE, &attr).map(drop)
}

/// What a link is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkTarget {
    /// A cgroup, by its id; 0: it is gone.
    Cgroup(u64),
    /// A network namespace, by its inode number; 0: it is gone.
    Netns(u32),
    /// Something that this agent attaches nothing to.
    Other,
}

/// What the kernel tells of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// The link's id.
    pub id: u32,
    /// The id of its program.
    pub program: u32,
    /// What it is attached to.
    pub target: LinkTarget,
    /// `enum bpf_attach_type`.
    pub attach_type: u32,
}

/// Asks for a link's target and program. Fails with `EINVAL` where the descriptor is no link.
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    /// `enum bpf_link_type`.
    const CGROUP: u32 = 3;
    const NETNS: u32 = 5;
    // A map or program would be told as if it were a link.
    let name = std::fs::read_link(format!("/proc/self/fd/{}", link.as_raw_fd()))?;
    // "bpf-link", or "bpf_link".
    if !name.as_os_str().as_bytes().ends_with(b"link") {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut found = RawLinkInfo {
        kind: 0,
        id: 0,
        program: 0,
        pad: 0,
        target: 0,
        attach_type: 0,
        rest: [0; 12],
    };
    let attr = AskInfo {
        bpf_fd: raw(link),
        len: u32::try_from(size_of::<RawLinkInfo>()).map_err(io::Error::other)?,
        into: (&raw mut found) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &attr)?;
    let lower = |word: u64| u32::try_from(word & u64::from(u32::MAX)).unwrap_or_default();
    let (target, attach_type) = match found.kind {
        CGROUP => (LinkTarget::Cgroup(found.target), lower(found.attach_type)),
        NETNS => (
            LinkTarget::Netns(lower(found.target)),
            lower(found.target >> 32),
        ),
        _ => (LinkTarget::Other, 0),
    };
    Ok(LinkInfo {
        id: found.id,
        program: found.program,
        target,
        attach_type,
    })
}

/// The head of `struct bpf_prog_info`.
#[repr(C, align(8))]
#[derive(Default)]
struct RawProgramInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited_len: u32,
    xlated_len: u32,
    jited: u64,
    xlated: u64,
    load_time: u64,
    created_by_uid: u32,
    nr_map_ids: u32,
    map_ids: u64,
    name: [u8; 16],
}

/// What the kernel tells of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramInfo {
    /// Its id.
    pub id: u32,
    /// A digest of its instructions, whatever maps they use.
    pub tag: [u8; 8],
    /// The ids of its maps.
    pub maps: Vec<u32>,
    /// Its name, as far as the kernel keeps it.
    pub name: String,
}

impl ProgramInfo {
    /// Whether both do the same: the same instructions with the same maps, of which that of
    /// constants is one of its own for every load.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let shared = self.maps.iter().filter(|id| other.maps.contains(id));
        self.tag == other.tag
            && self.maps.len() == other.maps.len()
            && shared.count() + 1 >= self.maps.len()
    }
}

/// Asks for a program's tag and maps.
pub fn program_info(program: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    const MOST_MAPS: usize = 64;
    let mut maps = vec![0_u32; MOST_MAPS];
    let mut found = RawProgramInfo {
        nr_map_ids: u32::try_from(maps.len()).map_err(io::Error::other)?,
        map_ids: maps.as_mut_ptr() as u64,
        ..RawProgramInfo::default()
    };
    let attr = AskInfo {
        bpf_fd: raw(program),
        len: u32::try_from(size_of::<RawProgramInfo>()).map_err(io::Error::other)?,
        into: (&raw mut found) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &attr)?;
    maps.truncate(found.nr_map_ids as usize);
    let name = found.name.split(|byte| *byte == 0).next();
    Ok(ProgramInfo {
        id: found.id,
        tag: found.tag,
        maps,
        name: String::from_utf8_lossy(name.unwrap_or_default()).into_owned(),
    })
}

/// The id of the link after this one; `None`: it is the last.
pub fn next_link_id(id: u32) -> io::Result<Option<u32>> {
    let mut attr = ById {
        id,
        ..ById::default()
    };
    match bpf_mut(BPF_LINK_GET_NEXT_ID, &mut attr) {
        Ok(_) => Ok(Some(attr.next)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A descriptor for the link with this id.
pub fn link_by_id(id: u32) -> io::Result<OwnedFd> {
    fd_by_id(BPF_LINK_GET_FD_BY_ID, id)
}

/// A descriptor for the program with this id.
pub fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    fd_by_id(BPF_PROG_GET_FD_BY_ID, id)
}

fn fd_by_id(command: u32, id: u32) -> io::Result<OwnedFd> {
    let attr = ById {
        id,
        ..ById::default()
    };
    owned(bpf(command, &attr)?)
}

/// Pins a map, program or link at a path in bpffs.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = Obj {
        pathname: path.as_ptr() as u64,
        bpf_fd: raw(object),
        ..Obj::default()
    };
    bpf(BPF_OBJ_PIN, &attr).map(drop)
}

/// Opens what is pinned at a path in bpffs: a map, program or link.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = Obj {
        pathname: path.as_ptr() as u64,
        ..Obj::default()
    };
    owned(bpf(BPF_OBJ_GET, &attr)?)
}

/// The identity in the cgroup storage of the cgroup with this inode id. Fails with `ENOENT` where
/// no program is attached to that cgroup.
pub fn identity(map: BorrowedFd<'_>, cgroup: u64) -> io::Result<Identity> {
    let mut identity = Identity::default();
    let attr = MapElement {
        map_fd: raw(map),
        key: (&raw const cgroup) as u64,
        value: (&raw mut identity) as u64,
        ..MapElement::default()
    };
    bpf(BPF_MAP_LOOKUP_ELEM, &attr)?;
    Ok(identity)
}

/// Sets the identity in the cgroup storage of the cgroup with this inode id. The kernel replaces
/// the whole value at once. Fails with `ENOENT` where no program is attached to that cgroup.
pub fn set_identity(map: BorrowedFd<'_>, cgroup: u64, identity: &Identity) -> io::Result<()> {
    let attr = MapElement {
        map_fd: raw(map),
        key: (&raw const cgroup) as u64,
        value: (&raw const *identity) as u64,
        ..MapElement::default()
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
/// share). Needs `CAP_NET_ADMIN` or `CAP_NET_RAW` in the user namespace of the socket's network.
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

fn bpf<T>(command: u32, attr: &T) -> io::Result<c_long> {
    call(command, &raw const *attr)
}

/// For commands whose answer is in the attributes.
fn bpf_mut<T>(command: u32, attr: &mut T) -> io::Result<c_long> {
    call(command, &raw mut *attr)
}

fn call<T>(command: u32, attr: *const T) -> io::Result<c_long> {
    // SAFETY: `attr` comes from a reference to the attribute structure of `command` (a unique one,
    // if the command writes to it), zero beyond what is set, and its size is given; pointers
    // inside it are valid for the duration of the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<T>()) };
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
