//! Small servers and clients, run as processes of the program `app`, so that each has its own
//! network namespace, cgroup and user.

pub mod answerer;
mod client;
pub mod probe;
mod server;
pub mod stream;
pub mod visit;
pub mod wire;

pub use answerer::Answerer;
pub use client::{Client, Held};
pub use probe::{Hoarded, Kind, Probe, Socket};
pub use server::{Server, ServerBuilder};
pub(crate) use server::{app, spawn};
pub use wire::{Answer, Mode, Outcome, Seen, Transfer};
