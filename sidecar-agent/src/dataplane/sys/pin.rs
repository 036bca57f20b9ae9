//! Pins in bpffs.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use super::bpf::{bpf, owned, raw};

const BPF_OBJ_PIN: u32 = 6;
const BPF_OBJ_GET: u32 = 7;

/// `union bpf_attr` of `BPF_OBJ_PIN` and `BPF_OBJ_GET`.
#[repr(C, align(8))]
#[derive(Default)]
struct Obj {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
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
