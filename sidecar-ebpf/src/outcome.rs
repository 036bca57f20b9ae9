//! What has become of a connection: counted, in one place for every hook that decides.

use sidecar_common::{
    Endpoint, Path, Reason,
    decide::{Decision, Direction, Transport},
    keys::{PlanId, WorkloadId},
    values::NO_LISTENER,
};

use crate::maps;

/// What was done with a connection, or datagram.
pub struct Outcome {
    /// How it travels.
    pub path: Path,
    /// A [`Reason`] as its number.
    pub reason: u8,
    /// The listener in the plan, or `NO_LISTENER`.
    pub listener: u32,
    /// Where it was led to; port 0: where it was going anyway, or nowhere.
    pub target: Endpoint,
}

/// A connection that was decided.
pub struct Connection<'a> {
    /// Whose.
    pub workload: WorkloadId,
    /// The plan that was followed.
    pub plan: PlanId,
    /// Seen from the workload.
    pub direction: Direction,
    /// Its transport.
    pub transport: Transport,
    /// Where it comes from; outbound: what the socket was bound to.
    pub source: &'a Endpoint,
    /// Where it was going.
    pub destination: &'a Endpoint,
}

impl Outcome {
    /// As it was decided.
    #[inline(always)]
    pub fn of(decision: &Decision, target: Endpoint) -> Self {
        Self {
            path: decision.path,
            reason: decision.reason,
            listener: decision.listener,
            target,
        }
    }

    /// Refused, for a reason that no plan gives.
    #[inline(always)]
    pub fn refused(reason: Reason) -> Self {
        Self {
            path: Path::Deny,
            reason: reason as u8,
            listener: NO_LISTENER,
            target: Endpoint::default(),
        }
    }

    /// Which decision could not be carried out.
    #[inline(always)]
    pub fn by(self, decision: &Decision) -> Self {
        Self {
            listener: decision.listener,
            ..self
        }
    }

    /// Counts it.
    #[inline(always)]
    pub fn report(&self, of: &Connection<'_>) {
        maps::count(of.workload, of.direction, self.path, self.reason);
    }
}
