//! Where a connection leads: asked of whoever knows.

use std::{
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use rustix::{
    io::Errno,
    net::{SocketAddrAny, SocketAddrUnix, getpeername, getsockname},
};

use super::stats::Tally;
use crate::compile::{Target, UnixAddr};

/// Decides for every connection of a listener.
pub trait Routes: Send + Sync {
    /// Where `accepted` leads. Called on the relay's threads for every connection: must not block,
    /// and must not call the [`Engine`](super::Engine).
    fn route(&self, accepted: &Accepted<'_>) -> Way;
}

/// Where a connection leads, and where it is counted beside the engine's own [`Stats`](super::Stats).
#[derive(Clone, Debug)]
pub struct Way {
    /// Where it leads.
    pub route: Route,
    /// Where it is counted, unless it is refused; `None`: nowhere.
    pub tally: Option<Arc<Tally>>,
}

impl From<Route> for Way {
    fn from(route: Route) -> Self {
        Self { route, tally: None }
    }
}

/// The outcome for one connection.
#[derive(Clone, Debug)]
pub enum Route {
    /// Dial these in order, the next one where one cannot be connected.
    ///
    /// [`Target::Original`] is the address the client connected to, as the accepted socket shows
    /// it (`sk_lookup` keeps it); it fails where that is the listener itself.
    Dial(Arc<[Target]>),
    /// As `Dial`; the last one is where the client was going, for want of the others.
    DialElse(Arc<[Target]>),
    /// Reset the connection.
    Refuse,
}

/// Where the targets of a listener are looked for.
#[derive(Clone, Debug, Default)]
pub struct Namespaces {
    /// Network namespace in which sockets for dialing are made, which decides about abstract unix
    /// sockets too; `None`: that of the thread that started the engine.
    pub net: Option<Arc<OwnedFd>>,
    /// Directory that is `/` for paths of unix sockets, such as `/proc/<pid>/root` (`O_PATH`
    /// will do): no symlink leads out of it (`RESOLVE_IN_ROOT`). `None`: the agent's own root.
    pub root: Option<Arc<OwnedFd>>,
}

/// A connection just accepted.
#[derive(Debug)]
pub struct Accepted<'a> {
    socket: BorrowedFd<'a>,
}

/// One end's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketName {
    /// Address and port.
    Tcp(SocketAddr),
    /// Path or abstract name.
    Unix(UnixAddr),
    /// A unix socket that was not bound, as most clients.
    Unnamed,
}

impl<'a> Accepted<'a> {
    pub(super) fn new(socket: &'a OwnedFd) -> Self {
        Self {
            socket: socket.as_fd(),
        }
    }

    /// The address the client connected to.
    ///
    /// # Errors
    /// As getsockname(2).
    pub fn local(&self) -> Result<SocketName, Errno> {
        getsockname(self.socket).map(SocketName::from)
    }

    /// The client's address.
    ///
    /// # Errors
    /// As getpeername(2); `ENOTCONN` where the client has reset the connection already.
    pub fn peer(&self) -> Result<SocketName, Errno> {
        Ok(getpeername(self.socket)?.map_or(SocketName::Unnamed, SocketName::from))
    }

    /// The socket, to ask for options. Not to be read, written or kept.
    #[must_use]
    pub fn socket(&self) -> BorrowedFd<'a> {
        self.socket
    }
}

impl From<SocketAddrAny> for SocketName {
    fn from(address: SocketAddrAny) -> Self {
        if let Ok(address) = SocketAddr::try_from(address.clone()) {
            return Self::Tcp(address);
        }
        let Ok(address) = SocketAddrUnix::try_from(address) else {
            return Self::Unnamed;
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if let Some(path) = address.path_bytes() {
            Self::Unix(UnixAddr::Path(text(path)))
        } else if let Some(name) = address.abstract_name() {
            Self::Unix(UnixAddr::Abstract(text(name)))
        } else {
            Self::Unnamed
        }
    }
}
