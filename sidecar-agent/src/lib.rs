//! The agent: reads `Sidecar` resources, works out what is captured, programs the kernel.
//!
//! `docs/architecture.md` tells how the modules fit together.

pub mod compile;
pub mod model;
