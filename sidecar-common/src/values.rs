//! Values of the maps.

use crate::{
    addr::Endpoint,
    decide::Direction,
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

impl Rule {
    /// A connection of the workload to one of its own addresses (outbound), or coming from one
    /// of its own addresses or loopback (inbound), passes whatever the rule says.
    pub const EXEMPT_SELF: u8 = 1;
    /// Decides before it matters who calls, by which interface, or that the workload calls itself:
    /// real listeners and excluded outbound ports.
    pub const FIRST: u8 = 2;

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
    /// What else holds (`PlanHeader::PROXIED` and so on).
    pub flags: u32,
    /// The proxy's outbound capture port (15001), for rules with path proxy.
    pub outbound_port: u16,
    /// The proxy's inbound capture port (15006), for rules with path proxy.
    pub inbound_port: u16,
    /// The port (15008) on which the proxy's calls to the workload itself are not captured.
    pub tunnel_port: u16,
    /// The port (15053) on which DNS is answered; 0: DNS is not captured.
    pub dns_port: u16,
    /// The proxy's first uid, in the workload's own user namespace; [`PlanHeader::NOBODY`]: it has
    /// none.
    pub proxy_uid: u32,
    /// The proxy's first gid, likewise.
    pub proxy_gid: u32,
    /// What is not captured as loopback: an IPv4 network, in network order.
    pub loopback: u32,
    /// The mask of that network, in network order.
    pub loopback_mask: u32,
    /// Outbound connections that no rule matches.
    pub outbound_default: Rule,
    /// Inbound connections that no rule matches.
    pub inbound_default: Rule,
}

impl PlanHeader {
    /// No id: the number of no user and no group.
    pub const NOBODY: u32 = u32::MAX;
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
    /// The proxy has more uids than the first (in `OWNERS`).
    pub const HAS_PROXY_UIDS: u32 = 32;
    /// The proxy has more gids than the first (in `OWNERS`).
    pub const HAS_PROXY_GIDS: u32 = 64;

    /// The workload has an external proxy that captured connections go to.
    pub const PROXIED: u32 = 1;
    /// IPv6 is captured.
    pub const IPV6: u32 = 2;
    /// A loopback network is among the included ones: calls of the workload to itself are captured
    /// like others.
    pub const LOOPBACK_INCLUDED: u32 = 4;
    /// Only callers whose group is in `OWNERS` are captured, outbound.
    pub const ONLY_GROUPS: u32 = 8;
    /// Callers whose group is in `OWNERS` are not captured, outbound.
    pub const EXCEPT_GROUPS: u32 = 16;
    /// Some interfaces are excluded.
    pub const EXCLUDED_INTERFACES: u32 = 32;
    /// Some interfaces are virtual: what arrives there is taken for outbound.
    pub const VIRTUAL_INTERFACES: u32 = 64;
    /// All that arrives at a virtual interface is captured, not only the networks of
    /// `PrefixKey::VIRTUAL`.
    pub const VIRTUAL_ALL: u32 = 128;
    /// The proxy is transparent: its own calls to the workload arrive like anybody's.
    pub const TPROXY: u32 = 256;
    /// `lo` is among the excluded interfaces.
    pub const EXCLUDED_LOOPBACK: u32 = 512;
    /// What the proxy was to get passes while it does not listen.
    pub const OPEN_PROXY_GONE: u32 = 1024;
    /// What cannot be remembered for want of memory passes.
    pub const OPEN_MAP_FULL: u32 = 2048;
    /// What meets an entry that is missing in the maps passes.
    pub const OPEN_UNKNOWN: u32 = 4096;
    /// The relay dials where an outbound connection was going when no target can be connected.
    pub const OPEN_RELAY: u32 = 8192;
    /// There is no plan: everything is refused, but calls of the workload to itself and the proxy's
    /// own. See [`PlanHeader::refusing`].
    pub const REFUSES: u32 = 16_384;
    /// Connections to the proxy are accelerated (`crate::accelerate`), where they can be.
    pub const ACCELERATE: u32 = 32_768;

    /// The header that refuses everything for want of this plan. It needs no entry in any other map.
    #[must_use]
    pub const fn refusing(&self) -> Self {
        let deny = Rule::new(Path::Deny, Reason::MapFull);
        Self {
            // Of the proxy's users and groups the first ones are known by the header itself.
            tables: 0,
            flags: self.flags & Self::PROXIED | Self::REFUSES,
            outbound_default: deny,
            inbound_default: deny,
            ..*self
        }
    }

    /// Whether this address counts as loopback, where nothing is captured.
    #[inline(always)]
    #[must_use]
    pub const fn is_loopback(&self, addr: &crate::Addr) -> bool {
        if addr.is_v4() {
            addr.v4() & self.loopback_mask == self.loopback
        } else {
            addr.is_loopback()
        }
    }
}

/// What an interface of a workload's network namespace is (`INTERFACES`).
pub struct Interface;

impl Interface {
    /// Nothing is captured that leaves or arrives by it.
    pub const EXCLUDED: u32 = 1;
    /// What arrives by it is taken for outbound.
    pub const VIRTUAL: u32 = 2;
}

/// How a destination is reached (`ROUTES`).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Route {
    /// The interface's index.
    pub interface: u32,
    /// The address that connections come from; a wildcard: not known.
    pub source: crate::Addr,
}

/// A word of `WORKLOADS`: the plan that a workload follows, and which programs follow it. One word,
/// so that a change of it is one store for both directions and all programs.
///
/// | bits | |
/// |---|---|
/// | 0 to 31 | the plan's id; 0: none |
/// | 32 to 47 | the set of programs and maps that decides; those of other sets let everything pass |
/// | 62 | open: should the plan not be in the maps, everything new passes (from ABI 4) |
/// | 63 | suspended: everything new passes, but the plan is known |
///
/// The other bits are zero; programs heed none that they do not know.
///
/// This layout, and the map's, must never change: it is by this word that programs of one ABI hand a
/// workload over to those of another.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Word(pub u64);

#[allow(
    clippy::cast_possible_truncation,
    reason = "a part of the word is what is wanted"
)]
impl Word {
    const SUSPENDED: u64 = 1 << 63;
    const OPEN: u64 = 1 << 62;

    /// The word of a workload that follows `plan` of `set`.
    #[must_use]
    pub const fn new(set: u16, plan: PlanId) -> Self {
        Self((set as u64) << 32 | plan as u64)
    }

    /// The same, with everything new passing.
    #[must_use]
    pub const fn suspended(self, suspended: bool) -> Self {
        if suspended {
            Self(self.0 | Self::SUSPENDED)
        } else {
            Self(self.0 & !Self::SUSPENDED)
        }
    }

    /// The same, with everything new passing should the plan not be in the maps.
    #[must_use]
    pub const fn open(self, open: bool) -> Self {
        if open {
            Self(self.0 | Self::OPEN)
        } else {
            Self(self.0 & !Self::OPEN)
        }
    }

    /// The plan; 0: none.
    #[inline(always)]
    #[must_use]
    pub const fn plan(self) -> PlanId {
        self.0 as PlanId
    }

    /// The set whose programs decide.
    #[inline(always)]
    #[must_use]
    pub const fn set(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// Whether everything new passes.
    #[inline(always)]
    #[must_use]
    pub const fn is_suspended(self) -> bool {
        self.0 & Self::SUSPENDED != 0
    }

    /// Whether everything new passes should the plan not be in the maps.
    #[inline(always)]
    #[must_use]
    pub const fn is_open(self) -> bool {
        self.0 & Self::OPEN != 0
    }
}

/// The ids of plans that refuse everything, one for each slot, begin here: see
/// [`PlanHeader::refusing`].
const REFUSING: PlanId = PlanId::MAX - (WORKLOAD_SLOTS - 1);

/// The id under which the plan of this workload is that refuses everything. It is there before any
/// other, so that it needs no room when there is none.
#[must_use]
pub const fn refusing_plan(workload: WorkloadId) -> PlanId {
    REFUSING | workload
}

/// Whose plan that refuses everything this is; `None`: it is another one.
#[must_use]
pub const fn refused_workload(plan: PlanId) -> Option<WorkloadId> {
    if plan >= REFUSING {
        Some(plan - REFUSING)
    } else {
        None
    }
}

/// Elements of `WORKLOADS`. As its layout, the same for ever.
pub const WORKLOAD_SLOTS: u32 = 65_536;

/// What a set of maps is (`META`, its only element): written when all its maps are there.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Meta {
    /// [`crate::ABI`].
    pub abi: u32,
    /// The set's number.
    pub set: u32,
}

/// Who a workload is, and what is its own: the cgroup storage of its attachments.
/// All zero (a fresh attachment) means "not ours yet": pass.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Identity {
    /// Slot in `WORKLOADS`.
    pub workload: WorkloadId,
    /// `Identity::ROUTED` and so on.
    pub flags: u32,
    /// The proxy's own cgroup (inode id), or 0: connections from it are the proxy's.
    pub proxy_cgroup: u64,
    /// The workload's network namespace, by its cookie (`SO_NETNS_COOKIE`), or by its inode number
    /// (see [`Kernel::NETNS_INODE`](crate::kernel::Kernel::NETNS_INODE)); listeners in another one,
    /// as of a container within the workload, cannot be given its connections.
    pub netns: u64,
    /// What uids of the workload's user namespace begin with on the host: there, the user `id` is
    /// `uid_base + id`.
    pub uid_base: u32,
    /// The same of gids.
    pub gid_base: u32,
    /// Where IPv4 connections that leave the workload come from (network order), or 0.
    pub source_v4: u32,
    /// The relay's port on 127.0.0.1 in the workload's network namespace, or 0.
    pub relay_port_v4: u16,
    /// The relay's port on `::1` in the workload's network namespace, or 0.
    pub relay_port_v6: u16,
    /// Where IPv6 connections that leave the workload come from, or `::`.
    pub source_v6: crate::Addr,
}

impl Identity {
    /// Where connections come from, and by which interface they leave, depends on where they go:
    /// see `ROUTES`.
    pub const ROUTED: u32 = 1;
    /// Its network namespace is not the host's. In that, others could call a stand-in
    /// ([`crate::standin`]) whose connections the workload's proxy takes for the workload's.
    pub const OWN_NETNS: u32 = 2;
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
    /// `Original::REWRITTEN` and so on.
    pub kind: u32,
}

impl Original {
    /// Led straight to an endpoint: nobody but getpeername asks for `dst`.
    pub const REWRITTEN: u32 = 0;
    /// Led to a listener of the proxy's or the relay's, which will ask for `dst`.
    pub const REDIRECTED: u32 = 1;
    /// Not led elsewhere. Where it arrives, it passes (see `decide::Arrival`).
    pub const PASSES: u32 = 2;
    /// Not led elsewhere. Where it arrives, it is the inbound listener's.
    pub const CAPTURED: u32 = 3;
    /// Of an accepted socket of the proxy's: where the client was going.
    pub const ACCEPTED: u32 = 4;
}

/// Counters of one workload are this many consecutive words of `COUNTERS`, from
/// `workload * DECISION_SLOTS` on; see [`decision_slot`]. Those of workload 0, which is nobody, hold
/// what workloads that are gone had counted.
pub const DECISION_SLOTS: u32 = 512;

/// Where decisions of one kind are counted among a workload's `DECISION_SLOTS`; `reason` is a
/// [`Reason`] as its number.
#[inline(always)]
#[must_use]
pub const fn decision_slot(direction: Direction, path: Path, reason: u8) -> u32 {
    (reason as u32 * PATHS + path as u32) * 2 + direction as u32
}

/// How many paths there are.
const PATHS: u32 = 5;

const _: () = assert!(Path::ALL.len() == PATHS as usize);
const _: () = assert!(Reason::ALL.len() * Path::ALL.len() * 2 <= DECISION_SLOTS as usize);

/// What went wrong in the kernel and shows nowhere else: indices of `LOST`.
pub struct Lost;

impl Lost {
    /// An event found the ring full.
    pub const EVENTS: u32 = 0;
    /// A listening socket could not be entered into `SOCKETS`.
    pub const SOCKETS: u32 = 1;
    /// An original destination could not be entered into `ORIGINAL_DST`.
    pub const ORIGINAL_DST: u32 = 2;
    /// How many there are.
    pub const COUNT: u32 = 3;
}
