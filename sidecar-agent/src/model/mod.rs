//! The resources an operator writes, as typed values, and what can be wrong with them.
//! Pure: text in, values and diagnostics out.

pub mod catalogue;
pub mod compat;
pub mod decode;
pub mod diagnostic;
pub mod endpoints;
pub mod failure;
pub mod mesh;
pub mod meta;
pub mod schema;
pub mod service;
pub mod service_entry;
pub mod settings;
pub mod sidecar;
pub mod snapshot;
pub mod tree;
pub mod validate;
pub mod virtual_service;
pub mod workload;

pub use compat::Compat;
pub use failure::FailurePolicy;
pub use meta::{Object, ObjectMeta, Origin, ResourceRef};
pub use snapshot::Snapshot;
