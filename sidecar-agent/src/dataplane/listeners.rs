//! Listening sockets that were open before the programs came: found through /proc, borrowed with
//! `pidfd_getfd`, entered into `SOCKETS`. (Those opened later enter themselves, see `sock_ops.rs`.)

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::IpAddr,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
};

use procfs::process::{FDTarget, Process};
use rustix::fs::fstat;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use sidecar_common::{Addr, Endpoint, keys::WorkloadId, values::PlanHeader};

use super::{attach::Attachment, cgroup, maps::Maps, netns::Netns, network, sys};

/// Enters every listening socket of the workload's processes on one of `ports`.
///
/// Processes and sockets come and go meanwhile: whatever cannot be read is passed over.
pub fn enter_existing(
    maps: &mut Maps,
    workload: WorkloadId,
    attachment: &mut Attachment,
    ports: &BTreeSet<u16>,
) {
    if ports.is_empty() {
        return;
    }
    let known = maps.sockets().remove(&workload).unwrap_or_default();
    let mut has_entered = false;
    let cgroups = attachment.cgroups.iter().map(|(_, path)| path.as_path());
    for found in listening_sockets(&attachment.netns, cgroups, ports, |_| true) {
        if known.contains(&found.endpoint) {
            continue;
        }
        let Some(socket) = found.borrow() else {
            continue;
        };
        has_entered = true;
        if let Err(error) = maps.enter_socket(workload, found.endpoint, &socket) {
            tracing::warn!(workload, endpoint = %found.endpoint, "{error:#}");
        }
    }
    if has_entered {
        // They did not count themselves.
        attachment.transparency.forget();
    }
}

/// What is known of the proxy's outbound listeners that answer what arrives by virtual interfaces.
#[derive(Default)]
pub struct Transparency {
    /// The port, and how many had begun to listen there, when they were last looked for.
    looked: Option<(u16, Option<u64>)>,
    /// Sockets that could not be made transparent (by inode), and why.
    refused: BTreeSet<(u64, Option<i32>)>,
}

impl Transparency {
    /// Has them looked for again.
    pub fn forget(&mut self) {
        self.looked = None;
    }
}

/// Lets the proxy's outbound listeners answer from the destinations that are called through a
/// virtual interface: they are not the workload's own, and only a transparent socket may. /proc is
/// slow to read: only where one has come that is not known.
pub fn make_transparent(maps: &Maps, workload: WorkloadId, attachment: &mut Attachment) {
    let virtuals = |header: &PlanHeader| header.flags & PlanHeader::VIRTUAL_INTERFACES != 0;
    let Some(header) = attachment.header.filter(virtuals) else {
        attachment.transparency = Transparency::default();
        return;
    };
    let port = header.outbound_port;
    // Asked for first: one that comes meanwhile is looked for the next time.
    let now = Some((port, maps.listened(workload, port)));
    if attachment.transparency.looked == now {
        return;
    }
    let mut refused = BTreeSet::new();
    let cgroups = attachment.cgroups.iter().map(|(_, path)| path.as_path());
    for found in listening_sockets(&attachment.netns, cgroups, &BTreeSet::from([port]), |_| {
        true
    }) {
        let Some(socket) = found.borrow() else {
            continue;
        };
        let Err(error) = sys::set_transparent(socket.as_fd()) else {
            continue;
        };
        let why = (found.inode, error.raw_os_error());
        // Processes may share a socket.
        if refused.insert(why) && !attachment.transparency.refused.contains(&why) {
            let endpoint = found.endpoint;
            tracing::warn!(
                workload,
                %endpoint,
                "making the proxy's listener transparent: {error}; without that it does not answer \
                 what arrives by a virtual interface; let the agent have CAP_NET_ADMIN"
            );
        }
    }
    attachment.transparency = Transparency {
        looked: now,
        refused,
    };
}

/// Where the workload's processes listen on one of `ports`; those of its proxy's uid, and of a
/// proxy's cgroup beside the workload's, do not count.
pub fn listening(attachment: &Attachment, ports: &BTreeSet<u16>) -> BTreeSet<Endpoint> {
    if ports.is_empty() {
        return BTreeSet::new();
    }
    let base = attachment.identity.uid_base;
    let proxy_uid = attachment
        .header
        .filter(|header| header.flags & PlanHeader::PROXIED != 0)
        .map(|header| base.wrapping_add(header.proxy_uid));
    let is_application = |process: &Process| {
        proxy_uid.is_none() || process.uid().map_or(true, |uid| Some(uid) != proxy_uid)
    };
    let cgroup = attachment.cgroups.first().map(|(_, path)| path.as_path());
    listening_sockets(&attachment.netns, cgroup, ports, is_application)
        .map(|found| found.endpoint)
        .collect()
}

/// Where processes in these cgroups listen in a namespace, on one of `ports`.
pub fn endpoints<'a>(
    netns: &'a Netns,
    cgroups: impl IntoIterator<Item = &'a Path>,
    ports: &BTreeSet<u16>,
) -> BTreeSet<Endpoint> {
    listening_sockets(netns, cgroups, ports, |_| true)
        .map(|found| found.endpoint)
        .collect()
}

/// A process of the workload whose listening sockets we may not look for, if there is one.
pub fn unreadable(attachment: &Attachment) -> Option<i32> {
    let is_denied = |error: &io::Error| matches!(error.kind(), io::ErrorKind::PermissionDenied);
    let cgroups = attachment.cgroups.iter().map(|(_, path)| path.as_path());
    cgroups.flat_map(cgroup::processes).find(|pid| {
        let netns = fs::metadata(format!("/proc/{pid}/ns/net"));
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"));
        netns.is_err_and(|error| is_denied(&error))
            || descriptors.is_err_and(|error| is_denied(&error))
    })
}

/// A listening socket of a process.
struct ListeningSocket {
    endpoint: Endpoint,
    pid: i32,
    /// The descriptor in that process.
    number: i32,
    inode: u64,
}

/// The sockets that listen on one of `ports`, in the workload's namespace, of the processes in
/// `cgroups` that are wanted.
fn listening_sockets<'a>(
    netns: &'a Netns,
    cgroups: impl IntoIterator<Item = &'a Path>,
    ports: &BTreeSet<u16>,
    is_wanted: impl Fn(&Process) -> bool,
) -> impl Iterator<Item = ListeningSocket> {
    let listening = listening_on(netns, ports);
    // Whose they are takes a walk through /proc, which is not made for none.
    let processes = if listening.is_empty() {
        Vec::new()
    } else {
        cgroups.into_iter().flat_map(cgroup::processes).collect()
    };
    processes
        .into_iter()
        .filter(|&pid| netns_of(pid) == Some(netns.id))
        .filter_map(|pid| Process::new(pid).ok())
        .filter(move |process| is_wanted(process))
        .flat_map(move |process| {
            sockets(&process)
                .into_iter()
                .filter_map(|(inode, number)| {
                    let endpoint = *listening.get(&inode)?;
                    Some(ListeningSocket {
                        endpoint,
                        pid: process.pid,
                        number,
                        inode,
                    })
                })
                .collect::<Vec<_>>()
        })
}

/// Listening sockets of the namespace on these ports, by inode.
fn listening_on(netns: &Netns, ports: &BTreeSet<u16>) -> BTreeMap<u64, Endpoint> {
    let listening = network::listening(netns).unwrap_or_else(|error| {
        tracing::warn!("{error:#}");
        BTreeMap::new()
    });
    listening
        .into_iter()
        .filter(|(_, address)| ports.contains(&address.port()))
        .map(|(inode, address)| {
            let addr = match address.ip() {
                IpAddr::V6(ip) if ip.is_unspecified() => Addr::ANY,
                ip => ip.into(),
            };
            (inode, Endpoint::new(addr, address.port()))
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

impl ListeningSocket {
    /// A descriptor of our own for it, if it still is what the process has under that number.
    fn borrow(&self) -> Option<OwnedFd> {
        let pidfd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        let socket = pidfd_getfd(&pidfd, self.number, PidfdGetfdFlags::empty()).ok()?;
        (fstat(&socket).ok()?.st_ino == self.inode).then_some(socket)
    }
}

fn netns_of(pid: i32) -> Option<(u64, u64)> {
    let found = fs::metadata(format!("/proc/{pid}/ns/net")).ok()?;
    Some((found.dev(), found.ino()))
}
