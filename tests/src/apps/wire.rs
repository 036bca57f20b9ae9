//! What `app` prints and sends: one JSON object a line.

use std::net::{IpAddr, SocketAddr};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// What a server does with a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Mode {
    /// Sends back what it receives until the client half-closes, then closes.
    Echo,
    /// Sends a [`Seen`] and closes.
    Banner,
    /// Receives until the client half-closes, then sends a [`Received`] and closes.
    Sink,
    /// Sends the first bytes of [`stream`](super::stream::Stream) and closes.
    Source,
    /// Keeps connections open and tells, when asked, of each who made it and its
    /// `SO_ORIGINAL_DST`.
    Keep,
    /// Answers one request of HTTP/1.1 with a [`Seen`] and closes.
    Http,
}

/// What a server in [`Mode::Keep`] knows of a connection: `getpeername(2)` and `SO_ORIGINAL_DST`.
pub type Kept = (SocketAddr, Option<SocketAddr>);

impl Mode {
    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Banner => "banner",
            Self::Sink => "sink",
            Self::Source => "source",
            Self::Keep => "keep",
            Self::Http => "http",
        }
    }
}

/// Who a server is, and what it sees of a connection. Addresses are as the kernel tells them: on
/// an IPv6 socket that speaks IPv4 they are v4-mapped (see [`canonical`]). None on a unix socket.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Seen {
    /// The server's name.
    pub name: String,
    /// `getpeername(2)`.
    pub peer: Option<SocketAddr>,
    /// `getsockname(2)`.
    pub local: Option<SocketAddr>,
    /// `SO_ORIGINAL_DST`.
    pub original_dst: Option<SocketAddr>,
    /// Why there is no `original_dst`.
    pub original_dst_errno: Option<i32>,
}

/// What [`Mode::Sink`] received.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Received {
    /// Number of bytes.
    pub bytes: u64,
    /// Their BLAKE3 hash, in hexadecimal digits.
    pub hash: String,
}

/// What became of a client's connection.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// Whether it was established.
    pub connected: bool,
    /// Why not, as `connect(2)`, or `SO_ERROR` of a non-blocking socket, tells it.
    pub errno: Option<i32>,
    /// Whether `connect(2)` returned EINPROGRESS.
    pub in_progress: bool,
    /// `getsockname(2)`.
    pub local: Option<SocketAddr>,
    /// `getpeername(2)`.
    pub peer: Option<SocketAddr>,
    /// What a [`Mode::Banner`] or [`Mode::Http`] server sent, when it was waited for.
    pub banner: Option<Seen>,
    /// The answer to an HTTP request.
    pub http: Option<Answer>,
    /// The result of a transfer, when there was one.
    pub transfer: Option<Transfer>,
    /// What went wrong after the connection was established.
    pub error: Option<String>,
}

/// The header that a [`Mode::Http`] server repeats the request's path in.
pub const PATH_HEADER: &str = "x-path";

/// The answer to an HTTP request, its body apart.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// Its status code.
    pub status: u16,
    /// The header `server`: proxies put their name there.
    pub server: Option<String>,
    /// The path that the server was asked for.
    pub path: Option<String>,
}

/// The result of a transfer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Transfer {
    /// Bytes the client sent.
    pub sent: u64,
    /// Bytes that arrived at the end: at the client, or as a [`Mode::Sink`] server reports them.
    pub received: u64,
    /// Whether they were the right ones, all of them, in order.
    pub intact: bool,
}

/// The same address with a v4-mapped one as IPv4.
#[must_use]
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The v4-mapped form of an IPv4 address, for an IPv6 socket.
#[must_use]
pub fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}
