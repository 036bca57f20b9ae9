//! Each BPF program in the running kernel: a hit, a miss, and what it does when it cannot know.
//!
//! The dataplane is driven from within the test by plans made by hand, and real connections show
//! what the kernel makes of them. In a [`fixture::Fixture`]'s network namespace every address of
//! `10.0.0.0/8` and `fd00::/8` is a local one: a server on a wildcard answers at all of them, and
//! tells which one was called.

mod accelerate;
mod coexistence;
mod collection;
mod connect4;
mod connect6;
mod counters;
mod dns;
mod events;
mod failure;
mod fixture;
mod footprint;
mod getpeername;
mod getsockopt;
mod healing;
mod interfaces;
mod left_alone;
mod life;
mod owners;
mod parity;
mod plan;
mod plans;
mod preflight;
mod sk_lookup;
mod sock_ops;
mod source;
mod tproxy;
mod transparency;
mod tuples;
mod uninstall;
mod usage;
mod verifier;
