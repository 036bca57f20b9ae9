//! Interception of a pod's traffic, seen from outside: what becomes of real connections and
//! datagrams under the options of istio-iptables, by whatever [`Side`] puts them in force.

mod attempt;
mod both;
pub mod conformance;
mod iptables;
mod observed;
mod observer;
mod ours;
pub mod pod;
pub mod rules;
mod side;

pub use attempt::{Attempt, From, Interface};
pub use both::Both;
pub use iptables::Iptables;
pub use observed::{Caller, Observed, Who};
pub use observer::Observer;
pub use ours::Ours;
pub use pod::Pod;
pub use side::Side;
