//! Where resources come from. Thin shells around pure state: they read, watch and ask, and
//! hand over [`crate::model::Snapshot`]s or parts of them.

pub mod dns;
pub mod files;
pub mod kube;
pub mod pod_cgroup;
pub mod pods;
