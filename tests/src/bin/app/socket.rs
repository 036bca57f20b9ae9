//! What both sides ask of a socket.

use std::{
    fs::File,
    net::SocketAddr,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    time::Duration,
};

use rustix::{
    io,
    net::{self, AddressFamily, SocketAddrAny, SocketAddrUnix, sockopt},
};
use sidecar_tests::apps::Seen;

/// How long a socket waits for its peer before the program gives up: a test has failed long before.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Limits reads, writes and a blocking connect to [`PATIENCE`].
pub fn limit(socket: impl AsFd) -> io::Result<()> {
    for timeout in [sockopt::Timeout::Recv, sockopt::Timeout::Send] {
        sockopt::set_socket_timeout(&socket, timeout, Some(PATIENCE))?;
    }
    Ok(())
}

/// `getsockname(2)`; `None` on a unix socket.
pub fn local(socket: impl AsFd) -> Option<SocketAddr> {
    ip(net::getsockname(socket).ok()?)
}

/// `getpeername(2)`; `None` on a unix socket.
pub fn peer(socket: impl AsFd) -> Option<SocketAddr> {
    ip(net::getpeername(socket).ok()??)
}

fn ip(address: SocketAddrAny) -> Option<SocketAddr> {
    SocketAddr::try_from(address).ok()
}

/// `SO_ORIGINAL_DST` of the family that the connection speaks.
pub fn original_dst(socket: impl AsFd) -> io::Result<SocketAddr> {
    let speaks_v6 = peer(&socket).is_some_and(|peer| peer.ip().to_canonical().is_ipv6());
    if speaks_v6 {
        sockopt::ipv6_original_dst(socket).map(SocketAddr::V6)
    } else {
        sockopt::ip_original_dst(socket).map(SocketAddr::V4)
    }
}

/// What a server tells of a connection.
pub fn seen(connection: impl AsFd, name: String) -> Seen {
    let original_dst = original_dst(&connection);
    Seen {
        name,
        peer: peer(&connection),
        local: local(&connection),
        original_dst: original_dst.ok(),
        original_dst_errno: original_dst.err().map(io::Errno::raw_os_error),
    }
}

/// The address family of an IP address.
pub fn family(address: SocketAddr) -> AddressFamily {
    if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    }
}

/// A socket to read from and write to, of whatever family.
pub fn stream(socket: impl Into<OwnedFd>) -> File {
    File::from(socket.into())
}

/// The address of a unix socket; `@name` is one in the abstract namespace.
pub fn unix_address(path: &Path) -> io::Result<SocketAddrUnix> {
    match path.as_os_str().as_bytes() {
        [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name),
        _ => SocketAddrUnix::new(path),
    }
}
