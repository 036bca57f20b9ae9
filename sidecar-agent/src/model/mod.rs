//! The resources an operator writes, as typed values, and what can be wrong with them.
//! Pure: text in, values and diagnostics out.

pub mod diagnostic;
pub mod mesh;
pub mod meta;
pub mod service;
pub mod service_entry;
pub mod sidecar;
pub mod snapshot;
pub mod workload;

pub use meta::{Object, ObjectMeta, Origin, ResourceRef};
pub use snapshot::Snapshot;
