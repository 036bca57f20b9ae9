//! What the tests that need a kernel are made of: network namespaces, cgroups, servers and clients
//! to run in them, a name server, and the agent.
//!
//! Nothing here is shared between two tests: every name is unique, addresses are per namespace,
//! and what a value made is gone when it is dropped, also when a test panics or is interrupted.
//! Nothing waits for a time to pass: see [`poll`].

pub mod agent;
pub mod apps;
pub mod bench;
pub mod bpffs;
pub mod cgroup;
pub mod chance;
pub mod cleanup;
pub mod command;
pub mod dns;
pub mod docs;
pub mod envoy;
pub mod foreign;
pub mod interception;
pub mod kube;
pub mod lab;
pub mod manifests;
pub mod names;
pub mod net;
pub mod netns;
pub mod node;
pub mod place;
pub mod poll;
pub mod programs;
pub mod scenario;
pub mod scrape;
pub mod skip;
pub mod soak;
pub mod tempdir;
pub mod tracer;

pub use agent::{Agent, AgentBuilder, Paused, Predecessor};
pub use apps::{Client, Kind, Mode, Probe, Server};
pub use bpffs::Bpffs;
pub use cgroup::Cgroup;
pub use dns::Dns;
pub use envoy::Envoy;
pub use net::{Host, Net};
pub use netns::Namespace;
pub use place::Place;
pub use poll::{DEADLINE, poll};

#[cfg(test)]
mod smoke;
