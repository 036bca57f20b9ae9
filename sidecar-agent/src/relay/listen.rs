//! Listening sockets for the relay.
//!
//! A socket belongs to the network namespace it is made in: wrap these in
//! [`netns::within`](super::netns::within) for another one than the caller's.

use std::{
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::Mode,
    io::Errno,
    net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, getsockname, listen,
        socket_with, sockopt,
    },
};

use serde::{Deserialize, Serialize};

use super::{
    error::{Cause, Error},
    files::{FileId, Found, Place},
    route::SocketName,
};
use crate::compile::UnixAddr;

/// Connections that may wait to be accepted; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Permissions of a unix socket file unless told otherwise: applications are not root, and
/// connecting needs write permission.
pub const ANYBODY: Mode = Mode::from_raw_mode(0o666);

const LISTEN_TCP: &str = "listen on TCP";
const LISTEN_UNIX: &str = "listen on unix socket";
const ADOPT_UNIX: &str = "take over unix socket";

/// Which of a workload's listening sockets of the relay.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// On 127.0.0.1.
    V4,
    /// On `::1`.
    V6,
    /// A unix socket that the plan declares.
    Unix(UnixAddr),
}

/// A listening stream socket; its file, if we made one, is removed when this is dropped.
#[derive(Debug)]
pub struct Listening {
    socket: OwnedFd,
    file: Option<SocketFile>,
}

impl Listening {
    /// Takes over a listening socket made elsewhere, such as by an agent before this one. A unix
    /// socket's file is left alone.
    #[must_use]
    pub fn adopt(socket: OwnedFd) -> Self {
        Self { socket, file: None }
    }

    /// Takes over a listening unix socket, and its file, from an agent before this one.
    ///
    /// # Errors
    /// If its file is not to be found.
    pub fn adopt_unix(
        root: Option<BorrowedFd<'_>>,
        address: &UnixAddr,
        socket: OwnedFd,
    ) -> Result<Self, Error> {
        let UnixAddr::Path(path) = address else {
            return Ok(Self::adopt(socket));
        };
        let failed = |errno: Errno| Error::new(ADOPT_UNIX, &**path, errno, path_remedy(errno));
        let place = Place::open(root, path).map_err(failed)?;
        let id = place.find().map_err(failed)?.id();
        Ok(Self {
            socket,
            file: Some(SocketFile {
                place,
                id: Some(id),
            }),
        })
    }

    /// The address it is bound to, with the port the kernel chose.
    ///
    /// # Errors
    /// As getsockname(2).
    pub fn local(&self) -> Result<SocketName, Errno> {
        getsockname(&self.socket).map(SocketName::from)
    }

    /// The socket alone, to be handed to another process; a unix socket's file stays.
    #[must_use]
    pub fn release(mut self) -> OwnedFd {
        if let Some(file) = &mut self.file {
            file.id = None;
        }
        self.socket
    }
}

impl AsFd for Listening {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The file of a unix socket we listen on.
#[derive(Debug)]
struct SocketFile {
    place: Place,
    /// `None`: no longer ours to remove.
    id: Option<FileId>,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Some(id) = self.id
            && let Err(errno) = self.place.remove(id)
        {
            tracing::warn!(file = ?self.place.name(), %errno, "relay: cannot remove a socket file");
        }
    }
}

/// Listens on `address`; port 0: one the kernel chooses. An IPv6 socket takes IPv6 only, so that
/// `0.0.0.0` and `::` are two listeners.
///
/// # Errors
/// Address in use, not local, or a port that needs privilege, with the remedy.
pub fn tcp(address: SocketAddr) -> Result<Listening, Error> {
    open_tcp(address).map(Listening::adopt).map_err(|errno| {
        let remedy = match errno {
            Errno::ADDRINUSE => "stop what listens there (`ss -ltnp`) or declare another port",
            Errno::ADDRNOTAVAIL => "declare an address of that network namespace (`ip address`)",
            Errno::ACCESS | Errno::PERM => "CAP_NET_BIND_SERVICE is needed for this port",
            Errno::AFNOSUPPORT => "the kernel has no such address family; declare another address",
            _ => SYSTEM_REMEDY,
        };
        Error::new(LISTEN_TCP, address.to_string(), errno, remedy)
    })
}

fn open_tcp(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let socket = stream_socket(family)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Listens on a unix socket. Paths are looked up inside `root` (see
/// [`Namespaces::root`](super::Namespaces::root)); the file gets permissions `mode`.
///
/// A socket file nobody listens on any more is replaced. Anything else is left alone.
///
/// # Errors
/// Names the path: taken by a live socket or by another kind of file; its directory missing or not
/// writable.
pub fn unix(
    root: Option<BorrowedFd<'_>>,
    address: &UnixAddr,
    mode: Mode,
) -> Result<Listening, Error> {
    match address {
        UnixAddr::Path(path) => at_path(root, path, mode),
        UnixAddr::Abstract(name) => abstract_name(name).map_err(|errno| {
            let remedy = match errno {
                Errno::ADDRINUSE => "stop what listens there (`ss -lxp`) or declare another name",
                Errno::NAMETOOLONG => "declare a name of at most 107 bytes",
                _ => SYSTEM_REMEDY,
            };
            Error::new(LISTEN_UNIX, format!("@{name}"), errno, remedy)
        }),
    }
}

fn abstract_name(name: &str) -> Result<Listening, Errno> {
    let socket = stream_socket(AddressFamily::UNIX)?;
    bind(
        &socket,
        &SocketAddrUnix::new_abstract_name(name.as_bytes())?,
    )?;
    listen(&socket, BACKLOG)?;
    Ok(Listening::adopt(socket))
}

fn at_path(root: Option<BorrowedFd<'_>>, path: &str, mode: Mode) -> Result<Listening, Error> {
    let failed = |errno: Errno| Error::new(LISTEN_UNIX, path, errno, path_remedy(errno));
    let place = Place::open(root, path).map_err(failed)?;
    let socket = stream_socket(AddressFamily::UNIX).map_err(failed)?;
    let address = place.address().map_err(failed)?;
    match bind(&socket, &address) {
        Err(Errno::ADDRINUSE) => {
            let found = place.find().map_err(failed)?;
            if let Some(occupant) = occupant(&found).map_err(failed)? {
                let remedy = "remove it yourself if it is not needed, or declare another path";
                return Err(Error::new(
                    LISTEN_UNIX,
                    path,
                    Cause::Occupied(occupant),
                    remedy,
                ));
            }
            place.remove(found.id()).map_err(failed)?;
            tracing::info!(path, "relay: replacing a socket nobody listens on");
            bind(&socket, &address).map_err(failed)?;
        }
        bound => bound.map_err(failed)?,
    }
    let found = place.find().map_err(failed)?;
    let file = SocketFile {
        place,
        id: Some(found.id()),
    };
    found.set_mode(mode).map_err(failed)?;
    listen(&socket, BACKLOG).map_err(failed)?;
    Ok(Listening {
        socket,
        file: Some(file),
    })
}

/// What must not be removed; `None`: a socket nobody listens on.
fn occupant(found: &Found) -> Result<Option<&'static str>, Errno> {
    if let Some(kind) = found.other_than_socket() {
        return Ok(Some(kind));
    }
    let probe = stream_socket(AddressFamily::UNIX)?;
    match connect(&probe, &found.address()?) {
        Err(Errno::CONNREFUSED) => Ok(None),
        // A full backlog, or a socket of another type: somebody holds it.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Ok(Some("a socket in use")),
        Err(errno) => Err(errno),
    }
}

fn path_remedy(errno: Errno) -> &'static str {
    match errno {
        Errno::NOENT => "create its directory, or mount the volume that holds it",
        Errno::NOTDIR => "a component of the path is no directory; declare another path",
        Errno::ACCESS | Errno::PERM => {
            "let the agent have CAP_DAC_OVERRIDE, or write to its directory"
        }
        Errno::ROFS => "its directory is read-only; mount a writable volume there",
        Errno::INVAL => "declare a path that ends in a file name",
        Errno::LOOP => "its symbolic links lead in a circle; declare another path",
        _ => SYSTEM_REMEDY,
    }
}

const SYSTEM_REMEDY: &str = "see the limits of the system (descriptors, memory)";

/// A non-blocking stream socket, closed on exec, in the calling thread's network namespace.
pub(super) fn stream_socket(family: AddressFamily) -> Result<OwnedFd, Errno> {
    socket_with(
        family,
        SocketType::STREAM,
        SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
        None,
    )
}
