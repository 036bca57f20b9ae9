//! A connection that the programs of a workload decide, and of which no packet leaves.
//!
//! Its socket is made in a cgroup of our own below the workload's, for which the workload's programs
//! run as for any other of its sockets. A program at our own cgroup drops what the socket sends, so
//! that the connection stays in `SYN_SENT`, where the kernel tells where it leads. (By UDP nothing is
//! sent at all.)

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, connect, getsockname, socket_with},
    process::{Gid, Uid},
    thread::{set_thread_res_gid, set_thread_res_uid},
};

use sidecar_common::decide::Transport;

use super::{
    cgroup::{Cgroup, own_cgroup},
    netns::Netns,
    network::connecting,
    scratch::{Purpose, Scratch},
    sys::{self, AttachType},
};

/// A socket that is ready to connect.
pub struct Attempt<'a> {
    netns: &'a Netns,
    transport: Transport,
    destination: SocketAddr,
    /// Dropped in this order: the socket's cgroup goes after it.
    socket: OwnedFd,
    _link: OwnedFd,
    _cgroup: Scratch,
    /// Its source port: nobody else's decision has it.
    pub port: u16,
}

/// What has become of it.
#[derive(Debug)]
pub struct Outcome {
    /// Where it leads; `None`: connect(2) has failed.
    pub target: Option<SocketAddr>,
    /// Where it comes from.
    pub source: SocketAddr,
    /// Why connect(2) has failed.
    pub error: Option<Errno>,
}

impl<'a> Attempt<'a> {
    /// Makes the socket, bound to an address if one is given. `root`: where cgroup2 is mounted.
    ///
    /// # Errors
    /// If the cgroup, the program or the socket cannot be made; mostly for want of root.
    pub fn prepare(
        root: &Path,
        cgroup: &Cgroup,
        netns: &'a Netns,
        (transport, source, destination): (Transport, Option<IpAddr>, SocketAddr),
    ) -> Result<Self> {
        let scratch = Scratch::below(&cgroup.path, Purpose::Explain)?;
        let path = scratch.path.display();
        let program = sys::load_drop_all().context("loading the program that drops packets")?;
        let link = sys::link_create(program.as_fd(), scratch.as_fd(), AttachType::Egress)
            .with_context(|| format!("attaching the program that drops packets to {path}"))?;
        let (family, any) = match destination {
            SocketAddr::V4(_) => (AddressFamily::INET, IpAddr::from(Ipv4Addr::UNSPECIFIED)),
            SocketAddr::V6(_) => (AddressFamily::INET6, Ipv6Addr::UNSPECIFIED.into()),
        };
        let kind = match transport {
            Transport::Tcp => SocketType::STREAM,
            Transport::Udp => SocketType::DGRAM,
        };
        let visit = Visit::to(root, &scratch.path)?;
        let made = netns.run(|| -> Result<OwnedFd> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(family, kind, flags, None)?;
            bind(&socket, &SocketAddr::new(source.unwrap_or(any), 0))?;
            Ok(socket)
        });
        visit.end()?;
        let socket = made?.context("opening a socket")?;
        Ok(Self {
            netns,
            transport,
            destination,
            port: name(&socket)?.port(),
            socket,
            _link: link,
            _cgroup: scratch,
        })
    }

    /// Connects it, as a user and group of the host's.
    ///
    /// # Errors
    /// If that user cannot be taken on, or the kernel does not tell of the socket.
    pub fn connect(&self, uid: u32, gid: u32) -> Result<Outcome> {
        let connected = self.netns.run(|| -> Result<Result<(), Errno>> {
            // Of this thread, which ends with this; what it may do is left to it.
            set_thread_res_gid(Gid::from_raw(gid), None, None)
                .with_context(|| format!("taking on the group {gid}"))?;
            set_thread_res_uid(Uid::from_raw(uid), None, None)
                .with_context(|| format!("taking on the user {uid}"))?;
            Ok(connect(&self.socket, &self.destination))
        })??;
        let error = match connected {
            Ok(()) | Err(Errno::INPROGRESS) => None,
            Err(error) => Some(error),
        };
        Ok(Outcome {
            target: connecting(self.netns, self.transport, self.port)?,
            source: name(&self.socket)?,
            error,
        })
    }
}

fn name(socket: &OwnedFd) -> Result<SocketAddr> {
    let name = getsockname(socket).context("asking for a socket's own address")?;
    name.try_into().context("a socket's own address")
}

/// A stay of this process in another cgroup: a socket is of that cgroup in which it is made.
struct Visit {
    home: Option<PathBuf>,
}

impl Visit {
    fn to(root: &Path, cgroup: &Path) -> Result<Self> {
        let home = own_cgroup(root)?;
        enter(cgroup)?;
        Ok(Self { home: Some(home) })
    }

    fn end(mut self) -> Result<()> {
        self.home.take().map_or(Ok(()), |home| enter(&home))
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.home.take().map(|home| enter(&home)) {
            tracing::warn!("{error:#}");
        }
    }
}

fn enter(cgroup: &Path) -> Result<()> {
    // 0: whoever writes it.
    fs::write(cgroup.join("cgroup.procs"), "0")
        .with_context(|| format!("moving to the cgroup {}", cgroup.display()))
}
