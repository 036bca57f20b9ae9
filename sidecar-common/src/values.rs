//! Values of the maps.

use crate::{
    addr::Endpoint,
    keys::{PlanId, WorkloadId},
    reason::{Path, Reason},
};

/// What a rule says about connections that match it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Rule {
    /// A [`Path`] as its number.
    pub path: u8,
    /// A [`Reason`] as its number.
    pub reason: u8,
    /// `Rule::EXEMPT_SELF` and friends.
    pub flags: u8,
    /// Always zero.
    pub pad: u8,
    /// Index of the listener in the plan's list (for `explain`, `trace` and the relay).
    pub listener: u32,
    /// The group of backends, where there are several.
    pub group: u32,
    /// 0: no backend is needed. 1: it is `target`. More: `target` is unused, see `BACKENDS`.
    pub backends: u32,
    /// Where a direct connection goes.
    pub target: Endpoint,
}

const _: () = assert!(size_of::<Rule>() == 36);

impl Rule {
    /// A connection of the workload to one of its own addresses (outbound), or coming from one
    /// of its own addresses or loopback (inbound), passes whatever the rule says.
    pub const EXEMPT_SELF: u8 = 1;

    /// A rule without backends.
    #[must_use]
    pub const fn new(path: Path, reason: Reason) -> Self {
        Self {
            path: path as u8,
            reason: reason as u8,
            flags: 0,
            pad: 0,
            listener: NO_LISTENER,
            group: 0,
            backends: 0,
            target: Endpoint::new(crate::Addr::ANY, 0),
        }
    }
}

/// `Rule::listener` of a rule that belongs to no listener.
pub const NO_LISTENER: u32 = u32::MAX;

/// What is true for every connection of a plan. Never changed once programmed: a new plan is a
/// new id.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PlanHeader {
    /// Which tables have entries (`PlanHeader::HAS_*`): a lookup that cannot hit is not made.
    pub tables: u32,
    /// The proxy's outbound capture port (15001), for rules with path proxy.
    pub outbound_port: u16,
    /// The proxy's inbound capture port (15006), for rules with path proxy.
    pub inbound_port: u16,
    /// Outbound connections that no rule matches.
    pub outbound_default: Rule,
    /// Inbound connections that no rule matches.
    pub inbound_default: Rule,
}

const _: () = assert!(size_of::<PlanHeader>() == 80);

impl PlanHeader {
    /// There are exact outbound rules.
    pub const HAS_OUTBOUND_EXACT: u32 = 1;
    /// There are prefix rules for single ports.
    pub const HAS_OUTBOUND_PORT_PREFIX: u32 = 2;
    /// There are prefix rules for all ports.
    pub const HAS_OUTBOUND_PREFIX: u32 = 4;
    /// There are inbound rules for single addresses.
    pub const HAS_INBOUND_EXACT: u32 = 8;
    /// There are inbound rules for any address.
    pub const HAS_INBOUND_PORT: u32 = 16;
}

/// Who a workload is, and what is its own: the cgroup storage of its attachments.
/// All zero (a fresh attachment) means "not ours yet": pass.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Identity {
    /// Slot in `WORKLOADS`.
    pub workload: WorkloadId,
    /// The proxy's uid as the kernel's initial user namespace sees it. Valid with `HAS_PROXY`.
    pub proxy_uid: u32,
    /// The proxy's own cgroup (inode id), or 0: connections from it are the proxy's.
    pub proxy_cgroup: u64,
    /// The workload's network namespace (`SO_NETNS_COOKIE`): listeners in another one, as of a
    /// container within the workload, cannot be given its connections.
    pub netns_cookie: u64,
    /// The relay's port on 127.0.0.1 in the workload's network namespace, or 0.
    pub relay_port_v4: u16,
    /// The relay's port on `::1` in the workload's network namespace, or 0.
    pub relay_port_v6: u16,
    /// `Identity::HAS_PROXY`.
    pub flags: u32,
}

const _: () = assert!(size_of::<Identity>() == 32);

impl Identity {
    /// The workload has an external proxy.
    pub const HAS_PROXY: u32 = 1;
}

/// Where a redirected connection was going, and what sent it elsewhere.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Original {
    /// The destination the application asked for.
    pub dst: Endpoint,
    /// The plan that decided.
    pub plan: PlanId,
    /// `Rule::listener` of the rule that decided.
    pub listener: u32,
    /// The port of the proxy's or the relay's listener that it was led to, which will ask for
    /// `dst`; 0: it went to none.
    pub via_local: u32,
}

const _: () = assert!(size_of::<Original>() == 32);

/// Counters of one workload are `REASON_SLOTS` consecutive elements of `COUNTERS`, at
/// `workload * REASON_SLOTS + reason * 2 + direction` (0 outbound, 1 inbound).
pub const REASON_SLOTS: u32 = 64;

const _: () = assert!(Reason::ALL.len() * 2 <= REASON_SLOTS as usize);
