//! What has become of a connection: counted and told, in one place for every hook that decides.

use aya_ebpf::helpers::generated::bpf_ktime_get_boot_ns;
use sidecar_common::{
    Endpoint, Event, Path, Reason,
    decide::{Decision, Direction, Transport},
    keys::{PlanId, WorkloadId},
    values::{Lost, NO_LISTENER, PlanHeader},
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
    /// Where it was going.
    pub destination: &'a Endpoint,
}

impl From<&Decision> for Outcome {
    /// As it was decided.
    #[inline(always)]
    fn from(decision: &Decision) -> Self {
        Self {
            path: decision.path,
            reason: decision.reason,
            listener: decision.listener,
        }
    }
}

impl Outcome {
    /// Refused, for a reason that no plan gives.
    #[inline(always)]
    pub fn refused(reason: Reason) -> Self {
        Self {
            path: Path::Deny,
            reason: reason as u8,
            listener: NO_LISTENER,
        }
    }

    /// What is to be remembered of it cannot be: the kernel has no memory.
    #[inline(always)]
    pub fn without_memory(header: &PlanHeader) -> Self {
        if header.flags & PlanHeader::OPEN_MAP_FULL == 0 {
            Self::refused(Reason::NoMemory)
        } else {
            Self::from(&Decision::new(Path::Pass, Reason::NoMemoryOpen))
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

    /// Counts it, and tells whoever traces: also where the connection comes from, and where it was
    /// led to. These are looked up then only, as there is no room on the stack to remember them; the
    /// record is written where it stays for the same reason.
    #[inline(always)]
    pub fn report(
        &self,
        of: &Connection<'_>,
        source: impl FnOnce() -> Endpoint,
        target: impl FnOnce() -> Endpoint,
    ) {
        maps::count(of.workload, of.direction, self.path, self.reason);
        if !maps::is_traced() {
            return;
        }
        let Some(mut entry) = maps::event() else {
            maps::lost(Lost::EVENTS);
            return;
        };
        let event: *mut Event = entry.as_mut_ptr();
        // SAFETY: the record is ours until it is submitted, and has the size of an event; every
        // field is written.
        unsafe {
            (*event).time = bpf_ktime_get_boot_ns();
            (*event).workload = of.workload;
            (*event).plan = of.plan;
            (*event).listener = self.listener;
            (*event).direction = of.direction as u8;
            (*event).transport = of.transport as u8;
            (*event).path = self.path as u8;
            (*event).reason = self.reason;
            (*event).source = source();
            (*event).destination = *of.destination;
            (*event).target = match self.path {
                Path::Deny => Endpoint::default(),
                _ => target(),
            };
            (*event).pad = 0;
        }
        entry.submit(0);
    }
}
