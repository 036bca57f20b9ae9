//! Entries of maps: of those whose key aya has no type for, and in batches.

use std::{io, os::fd::BorrowedFd};

use sidecar_common::values::Identity;

use super::bpf::{bpf, bpf_mut, raw};

const BPF_MAP_LOOKUP_ELEM: u32 = 1;
const BPF_MAP_UPDATE_ELEM: u32 = 2;
const BPF_MAP_LOOKUP_BATCH: u32 = 24;

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
