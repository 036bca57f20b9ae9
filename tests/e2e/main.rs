//! The agent as users run it: the real binary, real files, real connections.

mod bad_input;
mod conformance;
mod fixture;
mod handover;
mod in_use;
mod life;
mod pinned;
mod scenarios;
mod verbs;
