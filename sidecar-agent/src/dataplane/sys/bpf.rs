//! bpf(2) itself, and what several of its commands share.

use std::{
    ffi::c_long,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

const BPF_OBJ_GET_INFO_BY_FD: u32 = 15;

/// `union bpf_attr` of `BPF_*_GET_FD_BY_ID` and `BPF_*_GET_NEXT_ID`.
#[repr(C, align(8))]
#[derive(Default)]
struct ById {
    id: u32,
    /// Written by the kernel.
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

/// A command that the kernel only reads the attributes of.
pub fn bpf<T>(command: u32, attr: &T) -> io::Result<c_long> {
    call(command, &raw const *attr)
}

/// A command whose answer is in the attributes.
pub fn bpf_mut<T>(command: u32, attr: &mut T) -> io::Result<c_long> {
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

/// A descriptor as attributes have it.
pub fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// The descriptor that a command has just returned.
pub fn owned(fd: c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the caller has it from bpf(2), just now; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A descriptor for the object with this id, of the kind that `command` opens.
pub fn fd_by_id(command: u32, id: u32) -> io::Result<OwnedFd> {
    let attr = ById {
        id,
        ..ById::default()
    };
    owned(bpf(command, &attr)?)
}

/// The id of the object after this one, of the kind that `command` goes through; `None`: it is the
/// last.
pub fn next_id(command: u32, id: u32) -> io::Result<Option<u32>> {
    let mut attr = ById {
        id,
        ..ById::default()
    };
    match bpf_mut(command, &mut attr) {
        Ok(_) => Ok(Some(attr.next)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Has the kernel tell of a map, program or link. `found`: the structure of its kind of object, or
/// the head of it.
pub fn object_info<T>(object: BorrowedFd<'_>, found: &mut T) -> io::Result<()> {
    let attr = AskInfo {
        bpf_fd: raw(object),
        len: u32::try_from(size_of::<T>()).map_err(io::Error::other)?,
        into: (&raw mut *found) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &attr).map(drop)
}
