//! The agent as users run it: the real binary, real files, real connections.

mod bad_input;
mod conformance;
mod fixture;
mod in_use;
mod life;
mod observe;
mod scenarios;
mod verbs;
