//! Listening sockets that were open before the programs came: found through /proc, borrowed with
//! `pidfd_getfd`, entered into `SOCKETS`. (Those opened later enter themselves, see `sock_ops.rs`.)

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
};

use procfs::{
    net::{TcpNetEntry, TcpState},
    process::{FDTarget, Process},
};
use rustix::fs::fstat;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use sidecar_common::{Addr, Endpoint, keys::WorkloadId, values::Identity};

use super::{attach::Attachment, cgroup, maps::Maps};

/// Enters every listening socket of the workload's processes on one of `ports`.
///
/// Processes and sockets come and go meanwhile: whatever cannot be read is passed over.
pub fn enter_existing(
    maps: &mut Maps,
    workload: WorkloadId,
    attachment: &Attachment,
    ports: &BTreeSet<u16>,
) {
    if ports.is_empty() {
        return;
    }
    let known = maps.sockets().remove(&workload).unwrap_or_default();
    let mut listening: Option<BTreeMap<u64, Endpoint>> = None;
    let cgroups = attachment.cgroups.iter();
    for pid in cgroups.flat_map(|(_, path)| cgroup::processes(path)) {
        let Ok(process) = Process::new(pid) else {
            continue;
        };
        if netns_of(pid) != Some(attachment.netns.id) {
            continue;
        }
        // One namespace, one list: the first process in it can read it for all.
        let listening = listening.get_or_insert_with(|| listening_on(&process, ports));
        for (inode, number) in sockets(&process) {
            let Some(endpoint) = listening.get(&inode) else {
                continue;
            };
            if known.contains(endpoint) {
                continue;
            }
            if let Some(socket) = borrow(pid, number, inode)
                && let Err(error) = maps.enter_socket(workload, *endpoint, &socket)
            {
                tracing::warn!(workload, %endpoint, "{error:#}");
            }
        }
    }
}

/// Where the workload's processes listen on one of `ports`; those of its proxy's uid, and of a
/// proxy's cgroup beside the workload's, do not count.
pub fn listening(attachment: &Attachment, ports: &BTreeSet<u16>) -> BTreeSet<Endpoint> {
    let Some((_, cgroup)) = attachment.cgroups.first().filter(|_| !ports.is_empty()) else {
        return BTreeSet::new();
    };
    let proxy = attachment.identity;
    let is_proxy = |process: &Process| {
        proxy.flags & Identity::HAS_PROXY != 0
            && process.uid().is_ok_and(|uid| uid == proxy.proxy_uid)
    };
    let mut listening: Option<BTreeMap<u64, Endpoint>> = None;
    let mut found = BTreeSet::new();
    for pid in cgroup::processes(cgroup) {
        let Ok(process) = Process::new(pid) else {
            continue;
        };
        if netns_of(pid) != Some(attachment.netns.id) || is_proxy(&process) {
            continue;
        }
        let listening = listening.get_or_insert_with(|| listening_on(&process, ports));
        let inodes = sockets(&process).into_iter().map(|(inode, _)| inode);
        found.extend(inodes.filter_map(|inode| listening.get(&inode)));
    }
    found
}

/// Listening sockets of the process' namespace on these ports, by inode.
fn listening_on(process: &Process, ports: &BTreeSet<u16>) -> BTreeMap<u64, Endpoint> {
    let mut entries: Vec<TcpNetEntry> = process.tcp().unwrap_or_default();
    entries.extend(process.tcp6().unwrap_or_default());
    entries
        .into_iter()
        .filter(|entry| {
            entry.state == TcpState::Listen && ports.contains(&entry.local_address.port())
        })
        .map(|entry| {
            let addr = match entry.local_address.ip() {
                IpAddr::V6(ip) if ip.is_unspecified() => Addr::ANY,
                ip => ip.into(),
            };
            (entry.inode, Endpoint::new(addr, entry.local_address.port()))
        })
        .collect()
}

/// The sockets a process holds: inode and descriptor.
fn sockets(process: &Process) -> Vec<(u64, i32)> {
    let Ok(descriptors) = process.fd() else {
        return Vec::new();
    };
    descriptors
        .flatten()
        .filter_map(|descriptor| match descriptor.target {
            FDTarget::Socket(inode) => Some((inode, descriptor.fd)),
            _ => None,
        })
        .collect()
}

/// The socket with this inode, if that still is what the process has under that number.
fn borrow(pid: i32, number: i32, inode: u64) -> Option<OwnedFd> {
    let pidfd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    let socket = pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()).ok()?;
    (fstat(&socket).ok()?.st_ino == inode).then_some(socket)
}

fn netns_of(pid: i32) -> Option<(u64, u64)> {
    let found = std::fs::metadata(format!("/proc/{pid}/ns/net")).ok()?;
    Some((found.dev(), found.ino()))
}
