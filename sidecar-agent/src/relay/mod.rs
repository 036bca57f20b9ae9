//! The L4 relay: accepts connections, asks where they lead, dials, and moves bytes both ways.
//!
//! It serves what the kernel cannot do with one connection: unix sockets on either end, and
//! listeners that need a socket of their own. One [`Engine`] per process; a few threads, each with
//! its own epoll loop, serve every listener of every workload. A connection costs two descriptors
//! and one small record; buffers and pipes are held only while bytes are in them.
//!
//! What both ends see is meant to be what a direct connection would show: an end of stream is
//! passed on after all bytes before it, a reset as a reset, and a reader that does not read stops
//! the writer. Two things differ: urgent data is not passed on, and descriptors sent over a unix
//! socket (`SCM_RIGHTS`) are dropped. A unix socket knows no reset: its owner sees the stream end.
//!
//! The process must ignore `SIGPIPE`, as the Rust runtime does unless told otherwise: splice(2)
//! has no `MSG_NOSIGNAL`.

mod conn;
mod dial;
mod engine;
mod error;
mod files;
mod flow;
pub mod listen;
pub mod netns;
mod pipes;
mod route;
mod spin;
mod stats;
mod token;
mod worker;

pub use engine::{Engine, EngineConfig, ListenerId, ListenerSpec};
pub use error::{Cause, Error};
pub use listen::Role;
pub use route::{Accepted, Namespaces, Route, Routes, SocketName, Way};
pub use stats::{FailedDials, Stats, Tallied, Tally};
