//! The agent: reads `Sidecar` resources, works out what is captured, programs the kernel.
//!
//! `docs/architecture.md` tells how the modules fit together.

mod backoff;
pub mod cli;
pub mod cni;
pub mod compile;
pub mod conformance;
pub mod dataplane;
pub mod doctor;
pub mod explain;
pub mod limits;
pub mod model;
pub mod observe;
pub mod privileges;
pub mod relay;
pub mod resolve;
mod root_socket;
pub mod runtime;
pub mod source;
