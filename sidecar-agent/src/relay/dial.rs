//! Opening the second connection.

use std::{
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, connect, sockopt},
};

use super::{
    files, listen,
    netns::Visitor,
    route::{Accepted, Namespaces, SocketName},
};
use crate::compile::{Target, UnixAddr};

/// A socket on its way.
#[derive(Debug)]
pub(super) struct Dialed {
    pub(super) socket: OwnedFd,
    pub(super) is_unix: bool,
    /// Connected already; else it becomes writable when it is, or failed.
    pub(super) connected: bool,
}

/// Starts to connect to `target`. `bound`: the name of the listener that accepted.
///
/// # Errors
/// `EAGAIN`: a unix listener's backlog is full, and nothing will tell when it no longer is.
/// `EDESTADDRREQ`: the original destination is the listener itself, or no IP endpoint. Else as
/// connect(2).
pub(super) fn start(
    target: &Target,
    accepted: &Accepted<'_>,
    bound: &SocketName,
    namespaces: &Namespaces,
    visitor: &mut Visitor,
) -> Result<Dialed, Errno> {
    visitor.enter(namespaces.net.as_ref())?;
    match target {
        Target::Tcp(address) => tcp(*address),
        Target::Original => tcp(original(accepted.local()?, bound)?),
        Target::Unix(UnixAddr::Path(path)) => {
            let root = namespaces.root.as_ref().map(AsFd::as_fd);
            let (address, _held) = files::address_of(root, path)?;
            unix(&address)
        }
        Target::Unix(UnixAddr::Abstract(name)) => {
            unix(&SocketAddrUnix::new_abstract_name(name.as_bytes())?)
        }
    }
}

/// The address the client wanted, unless that is our own listener: dialing it would never end.
fn original(local: SocketName, bound: &SocketName) -> Result<SocketAddr, Errno> {
    match (local, bound) {
        (SocketName::Tcp(local), SocketName::Tcp(bound))
            if local.port() != bound.port()
                || (!bound.ip().is_unspecified() && bound.ip() != local.ip()) =>
        {
            Ok(local)
        }
        _ => Err(Errno::DESTADDRREQ),
    }
}

fn tcp(address: SocketAddr) -> Result<Dialed, Errno> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let socket = listen::stream_socket(family)?;
    tune_tcp(socket.as_fd())?;
    // A target on this node has answered before connect(2) returns, which the second call tells.
    let outcome = match connect(&socket, &address) {
        Err(Errno::INPROGRESS) => connect(&socket, &address),
        outcome => outcome,
    };
    let connected = match outcome {
        Ok(()) => true,
        Err(Errno::ALREADY) => false,
        // For TCP this is the lack of a free local port.
        Err(Errno::AGAIN) => return Err(Errno::ADDRNOTAVAIL),
        Err(errno) => return Err(errno),
    };
    Ok(Dialed {
        socket,
        is_unix: false,
        connected,
    })
}

fn unix(address: &SocketAddrUnix) -> Result<Dialed, Errno> {
    let socket = listen::stream_socket(AddressFamily::UNIX)?;
    connect(&socket, address)?;
    Ok(Dialed {
        socket,
        is_unix: true,
        connected: true,
    })
}

/// Options of every TCP socket of ours; a listening socket passes them on to those it accepts.
///
/// What to hold back (Nagle) was decided by the sender already. Keepalive, at the namespace's
/// `tcp_keepalive_time`, finds hosts that vanished.
pub(super) fn tune_tcp(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_keepalive(socket, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> SocketName {
        SocketName::Tcp(text.parse().unwrap())
    }

    #[test]
    fn original_destination() {
        for (local, bound, leads) in [
            ("10.0.0.1:80", "127.0.0.1:15099", true),
            ("10.0.0.1:80", "0.0.0.0:15099", true),
            ("10.0.0.1:80", "10.0.0.2:80", true),
            ("10.0.0.1:80", "10.0.0.1:80", false),
            ("10.0.0.1:80", "0.0.0.0:80", false),
            ("[fd00::1]:80", "[::]:80", false),
        ] {
            assert_eq!(
                original(name(local), &name(bound)).is_ok(),
                leads,
                "{local} over {bound}"
            );
        }
        assert_eq!(
            original(SocketName::Unnamed, &name("0.0.0.0:1")),
            Err(Errno::DESTADDRREQ)
        );
    }
}
