//! A workload's network: what its namespace says of interfaces and routes, and the little that the
//! agent sets up in it.

mod netlink;
mod read;
mod setup;
mod sockets;
mod steering;

pub use read::{Network, RouteTo, Sources};
pub use setup::Setup;
pub use sockets::{connecting, listener, listening};
pub use steering::Steering;
