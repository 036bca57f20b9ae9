//! What the kernel side and the user side of the agent must agree on.
//!
//! Everything that crosses the boundary is `repr(C)`, has no implicit padding (asserted at
//! compile time, so a change of layout is seen), and is endian-neutral: addresses are kept as
//! the bytes that travel on the wire, ports and ids as native integers.
//!
//! [`decide`] holds the one decision function that the BPF programs run for a connection, and
//! that `explain`, `plan` and the tests call with the same tables.
#![no_std]
#![allow(
    clippy::inline_always,
    reason = "BPF programs are to hold no calls: the verifier checks what is inlined path by path"
)]

#[cfg(feature = "user")]
extern crate std;

pub mod accelerate;
pub mod addr;
pub mod decide;
pub mod event;
pub mod kernel;
pub mod keys;
mod layout;
pub mod reason;
pub mod standin;
pub mod values;

#[cfg(feature = "user")]
mod user;

pub use addr::{Addr, Endpoint};
pub use event::Event;
pub use reason::{Path, Reason};

/// Changes whenever a map layout, or the meaning of a value in a map, changes.
pub const ABI: u32 = 5;

/// IANA number of TCP, as the `protocol` field of a socket.
pub const IPPROTO_TCP: u32 = 6;
/// IANA number of UDP.
pub const IPPROTO_UDP: u32 = 17;
/// MPTCP's socket protocol (`IPPROTO_MPTCP`): TCP on the wire, so captured as TCP.
pub const IPPROTO_MPTCP: u32 = 262;
