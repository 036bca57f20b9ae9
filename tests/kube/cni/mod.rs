//! The CNI plugin, as a runtime runs it behind a real one.

mod absent;
mod account;
mod churn;
mod first;
mod installed;
mod labels;
mod latency;
mod namespaced;
mod reboot;
mod told;
mod update;
mod world;
