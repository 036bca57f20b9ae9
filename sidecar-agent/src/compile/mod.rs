//! From what is declared to what the kernel needs. Pure.

pub mod plan;

pub use plan::{Listener, Plan, Target, UnixAddr};
