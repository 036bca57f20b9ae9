//! The agent as users run it: the real binary, real files, real connections.

mod admin;
mod attacks;
mod bad_input;
mod coexistence;
mod conformance;
mod doctor;
mod dump;
mod explain_kernel;
mod failure;
mod fixture;
mod handover;
mod healing;
mod in_use;
mod life;
mod limits;
mod observe;
mod pinned;
mod privileges;
mod scenarios;
mod seccomp;
mod service;
mod verbs;
