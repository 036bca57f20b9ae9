//! What the programs tell of a decision while somebody traces.

use crate::{
    addr::Endpoint,
    keys::{PlanId, WorkloadId},
};

/// One decision: a record in the ring `EVENTS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// When, in nanoseconds of `CLOCK_BOOTTIME`.
    pub time: u64,
    /// Whose connection it is.
    pub workload: WorkloadId,
    /// The plan that was followed.
    pub plan: PlanId,
    /// `Rule::listener` of the rule that decided.
    pub listener: u32,
    /// A `decide::Direction` as its number.
    pub direction: u8,
    /// A `decide::Transport` as its number.
    pub transport: u8,
    /// A [`Path`](crate::Path) as its number.
    pub path: u8,
    /// A [`Reason`](crate::Reason) as its number.
    pub reason: u8,
    /// Where it comes from; outbound: what the socket is bound to, if to anything.
    pub source: Endpoint,
    /// Where it was going.
    pub destination: Endpoint,
    /// Where it was led to; equal to `destination`, or port 0: where it was going, or nowhere.
    pub target: Endpoint,
    /// Always zero.
    pub pad: u32,
}

impl Event {
    /// Its size in the ring.
    pub const SIZE: usize = size_of::<Self>();
}
