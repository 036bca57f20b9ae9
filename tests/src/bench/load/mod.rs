//! Both ends of the connections that are measured: processes of the program `app`, each with one
//! thread on one CPU.

mod client;
mod server;
mod usage;
pub mod wire;

pub use client::LoadClient;
pub use server::{At, LoadServer};
pub use usage::cpu_time;
