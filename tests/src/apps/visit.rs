//! One connection or datagram, made as any user, and what its ends see of it.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::wire::Seen;

/// Who makes a connection, as the kernel's owner checks see it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct User {
    /// Real, effective, saved and file system uid.
    pub uid: u32,
    /// The same of gids.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// How it travels.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Transport {
    /// A connection.
    Tcp,
    /// A datagram from a socket that is connected: it hears nobody but whom it asked.
    Udp,
    /// A datagram from a socket that is not, and hears anybody.
    UdpUnconnected,
}

/// A connection or datagram to be made, of which a [`Report`] comes back.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Visit {
    /// Who makes it; the probe's own user if `None`.
    pub user: Option<User>,
    /// How.
    pub transport: Transport,
    /// The address it is bound to first, at a port that the kernel chooses.
    pub source: Option<IpAddr>,
    /// Where it is going.
    pub to: SocketAddr,
    /// How long each step of it may take.
    pub patience: Duration,
}

/// What the one who made it sees.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Visited {
    /// `getsockname(2)`, once connected or sent.
    pub local: SocketAddr,
    /// `getpeername(2)`, or who sent the answer.
    pub peer: SocketAddr,
    /// What the server reports.
    pub report: Report,
}

/// What the server sees.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Where the listening socket is bound: not where the connection was going, nor where it
    /// seems to have arrived.
    pub listener: SocketAddr,
    /// Its name, and what it sees. There is no `local` of a datagram.
    #[serde(flatten)]
    pub seen: Seen,
}
