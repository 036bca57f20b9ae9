//! From what is declared to what it means: which Sidecar applies to a workload, which services
//! it sees, which listeners exist, what is captured. Pure.
//!
//! | module | question |
//! |---|---|
//! | [`select`] | which Sidecar applies to a workload |
//! | [`ambient`] | which Sidecars conflict, or are for workloads that none applies to |
//! | [`pool`] | which connection pool settings hold for an ingress port |
//! | [`traffic`] | what the workload's annotations capture and exempt |
//! | [`workload`] | which workloads are on this node |
//! | [`registry`] | which services exist, and where they lead |
//! | [`hosts`], [`visibility`] | which services an egress listener exposes |
//! | [`listeners`] | which egress listeners exist, at which address and port |
//! | [`inbound`], [`forward`] | which ingress listeners exist, and where they lead |
//! | [`analysis`] | what is suspicious about a Sidecar in view of the services |
//! | [`declared`] | which resource and field decided |
//! | [`capture`] | real listener or captured; bind addresses; reserved ports |

pub mod ambient;
pub mod analysis;
pub mod capture;
pub mod declared;
pub mod finding;
pub mod forward;
pub mod hosts;
pub mod inbound;
pub mod listeners;
pub mod pool;
pub mod protocol;
pub mod registry;
pub mod select;
pub mod traffic;
pub mod visibility;
pub mod workload;

pub use finding::{Finding, FindingKind};
pub use registry::Registry;
pub use workload::ResolvedWorkload;
