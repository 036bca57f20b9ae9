//! The admin socket: one request, one answer, both a line of JSON. Root only: by the permissions of
//! its file and directory, and by who the kernel says has connected.

mod client;
mod server;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::status::{CaptureStatus, Status};
use crate::relay::Role;

pub use client::{ask, ask_on, no_agent};
pub use server::Admin;

/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);

/// What can be asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// The whole state.
    Status,
    /// To have new connections of a workload be captured, or pass.
    Capture {
        /// `namespace/name`.
        workload: String,
        /// `None`: as its configuration says.
        on: Option<bool>,
    },
    /// To hand everything over to the process that asks, which is the next agent.
    TakeOver,
    /// By the next agent, on the same connection: it has taken over.
    Taken {
        /// With the relay's TCP listeners. If not, this agent serves them until the last connection
        /// that is led to them has arrived.
        tcp: bool,
    },
}

/// The answer to [`Request::Status`], or to any request that failed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The state.
    Status(Box<Status>),
    /// What [`Request::Capture`] has come to.
    Capture(CaptureStatus),
    /// What can be taken over, see [`Request::TakeOver`].
    Offer(Offer),
    /// Why the request was not served.
    Error(String),
}

/// What an agent hands over. Descriptors are numbers in its process: see `pidfd_getfd(2)`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Offer {
    /// Its process. (`SO_PEERCRED` tells who opened the admin socket first.)
    pub pid: i32,
    /// The listening admin socket.
    pub admin: i32,
    /// The relay's listening sockets, by workload.
    pub sockets: Vec<OfferedSocket>,
}

/// One of the relay's listening sockets.
#[derive(Debug, Serialize, Deserialize)]
pub struct OfferedSocket {
    /// `namespace/name`.
    pub workload: String,
    /// Which it is.
    pub role: Role,
    /// Its descriptor.
    pub descriptor: i32,
}

/// A request on its way to the agent's main loop.
pub enum Call {
    /// To be answered.
    Ask(Request, oneshot::Sender<Answer>),
    /// The next agent wants to take over: to be answered with an [`Offer`]; whether it has taken it
    /// comes later, or never.
    TakeOver(oneshot::Sender<Answer>, oneshot::Receiver<Taken>),
}

/// The next agent has taken over; with the relay's TCP listeners or without.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// With them.
    pub tcp: bool,
}

/// Where the socket of the agent with this run directory is.
#[must_use]
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("admin.sock")
}
