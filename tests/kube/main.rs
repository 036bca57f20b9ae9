//! The agent that reads a real API server, and what its workload's connections make of it.

mod absent;
mod following;
mod headless;
mod large;
mod outage;
mod world;
