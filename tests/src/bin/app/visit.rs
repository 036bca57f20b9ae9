//! One connection or datagram, made as any user.

use std::{net::SocketAddr, os::fd::OwnedFd, thread};

use rustix::{
    io::Errno,
    net::{self, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt},
    process::{Gid, Uid},
    thread as credentials,
};
use sidecar_tests::apps::visit::{Report, Transport, User, Visit, Visited};

use crate::{probe::banner, socket};

/// More than a report needs.
const DATAGRAM: usize = 2048;

/// Makes it in a thread of its own: to the kernel, users are a matter of threads, and one that has
/// become somebody else is no longer root.
pub fn make(visit: Visit) -> rustix::io::Result<Visited> {
    let made = thread::spawn(move || {
        if let Some(user) = &visit.user {
            become_user(user)?;
        }
        visit_as_is(&visit)
    });
    made.join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Makes the calling thread another user's.
pub fn become_user(user: &User) -> rustix::io::Result<()> {
    let groups: Vec<Gid> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    credentials::set_thread_groups(&groups)?;
    credentials::set_thread_res_gid(gid, gid, gid)?;
    credentials::set_thread_res_uid(uid, uid, uid)
}

fn visit_as_is(visit: &Visit) -> rustix::io::Result<Visited> {
    let kind = match visit.transport {
        Transport::Tcp => SocketType::STREAM,
        Transport::Udp | Transport::UdpUnconnected => SocketType::DGRAM,
    };
    let socket = net::socket_with(socket::family(visit.to), kind, SocketFlags::CLOEXEC, None)?;
    for timeout in [sockopt::Timeout::Recv, sockopt::Timeout::Send] {
        sockopt::set_socket_timeout(&socket, timeout, Some(visit.patience))?;
    }
    if let Some(source) = visit.source {
        net::bind(&socket, &SocketAddr::new(source, 0))?;
    }
    if visit.transport == Transport::UdpUnconnected {
        net::sendto(&socket, b"?", SendFlags::empty(), &visit.to)?;
    } else {
        net::connect(&socket, &visit.to)?;
    }
    let (peer, report) = match visit.transport {
        Transport::Tcp => {
            let peer = socket::peer(&socket).ok_or(Errno::NOTCONN)?;
            (peer, banner(&socket)?)
        }
        Transport::Udp => {
            net::send(&socket, b"?", SendFlags::empty())?;
            receive(&socket)?
        }
        Transport::UdpUnconnected => receive(&socket)?,
    };
    Ok(Visited {
        local: socket::local(&socket).ok_or(Errno::NOTCONN)?,
        peer,
        report,
    })
}

fn receive(socket: &OwnedFd) -> rustix::io::Result<(SocketAddr, Report)> {
    let mut buffer = [0; DATAGRAM];
    let (length, _, from) = net::recvfrom(socket, &mut buffer, RecvFlags::empty())?;
    let from = from.ok_or(Errno::PROTO)?.try_into()?;
    let report = serde_json::from_slice(&buffer[..length]).map_err(|_| Errno::PROTO)?;
    Ok((from, report))
}
