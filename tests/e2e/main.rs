//! The agent as users run it: the real binary, real files, real connections.

mod bad_input;
mod fixture;
mod life;
mod scenarios;
mod verbs;
