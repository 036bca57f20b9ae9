//! The CNI plugin, as a runtime runs it behind a real one.

mod absent;
mod first;
mod installed;
mod world;
