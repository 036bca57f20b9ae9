//! The agent on a cluster's node: a real API server, real containers, real CNI plugins, and what
//! connections make of it.

mod absent;
mod cni;
mod following;
mod headless;
mod large;
mod metrics;
mod outage;
mod pods;
mod world;
