//! What came of it.

use std::net::{IpAddr, SocketAddr};

use rustix::io::Errno;

use crate::apps::{visit::Visited, wire::canonical};

/// What came of an [`Attempt`](super::Attempt).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Observed {
    /// The proxy answered.
    Captured {
        /// The port it listens on.
        to_port: u16,
        /// What `SO_ORIGINAL_DST` told it.
        original_dst: Option<SocketAddr>,
        /// What getsockname(2) told it; `None` for datagrams.
        local: Option<SocketAddr>,
        /// The address that it was called from.
        peer: IpAddr,
        /// What the caller saw.
        caller: Caller,
    },
    /// The destination itself answered, at the address that was called.
    NotCaptured {
        /// The address that it was called from.
        peer: IpAddr,
        /// What the caller saw.
        caller: Caller,
    },
    /// Somebody else answered, or at another address.
    Astray {
        /// Who it was.
        by: String,
        /// Where it listens.
        listener: SocketAddr,
        /// What getsockname(2) told it; `None` for datagrams.
        local: Option<SocketAddr>,
        /// The address that it was called from.
        peer: IpAddr,
    },
    /// Nobody listens where it led: it was refused, or was reset.
    Refused,
    /// Nothing came back in time.
    TimedOut,
    /// The kernel refused it in another way.
    Failed(Errno),
}

/// The caller's view.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    /// The address it calls from.
    pub local: IpAddr,
    /// Whom it believes to talk to: getpeername(2), or the sender of the datagram that came back.
    pub peer: SocketAddr,
}

/// The names of those who answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "named after what they are")]
pub enum Who {
    Proxy,
    App,
    Outside,
    Guest,
}

impl Who {
    /// As it is called in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::App => "app",
            Self::Outside => "outside",
            Self::Guest => "guest",
        }
    }
}

impl Observed {
    /// What came of a visit that `destination` should have answered unless it was captured.
    #[must_use]
    pub fn new(visited: Result<Visited, Errno>, to: SocketAddr, destination: Who) -> Self {
        let visited = match visited {
            Ok(visited) => visited,
            Err(Errno::CONNREFUSED | Errno::CONNRESET) => return Self::Refused,
            Err(Errno::TIMEDOUT | Errno::AGAIN | Errno::INPROGRESS) => return Self::TimedOut,
            Err(errno) => return Self::Failed(errno),
        };
        let (listener, seen) = (visited.report.listener, visited.report.seen);
        // The report came back to a socket that has an address, by TCP or UDP.
        let Some(peer) = seen.peer.map(|peer| canonical(peer).ip()) else {
            return Self::Failed(Errno::PROTO);
        };
        let local = seen.local.map(canonical);
        let caller = Caller {
            local: visited.local.ip(),
            peer: visited.peer,
        };
        if seen.name == Who::Proxy.name() {
            Self::Captured {
                to_port: listener.port(),
                original_dst: seen.original_dst,
                local,
                peer,
                caller,
            }
        } else if seen.name == destination.name() && local.unwrap_or(listener) == to {
            Self::NotCaptured { peer, caller }
        } else {
            Self::Astray {
                by: seen.name,
                listener,
                local,
                peer,
            }
        }
    }
}
