//! BPF links, for every type of attachment.

use std::{
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

use super::bpf::{bpf, fd_by_id, next_id, object_info, owned, raw};

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

/// The head of `struct bpf_link_info`, and as much room as its longest form has.
#[repr(C, align(8))]
#[derive(Default)]
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

/// Has a link run another program from now on: at once, without a moment in which none runs.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attr = LinkUpdate {
        link_fd: raw(link),
        new_prog_fd: raw(program),
        ..LinkUpdate::default()
    };
    bpf(BPF_LINK_UPDATE, &attr).map(drop)
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
    let mut found = RawLinkInfo::default();
    object_info(link, &mut found)?;
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

/// The id of the link after this one; `None`: it is the last.
pub fn next_link_id(id: u32) -> io::Result<Option<u32>> {
    next_id(BPF_LINK_GET_NEXT_ID, id)
}

/// A descriptor for the link with this id.
pub fn link_by_id(id: u32) -> io::Result<OwnedFd> {
    fd_by_id(BPF_LINK_GET_FD_BY_ID, id)
}
