//! Keys of the maps. All integers are native; addresses are in network order (see [`Addr`]).

use crate::addr::{Addr, Endpoint};

/// A plan, by the id the agent gave it. 0 is "no plan": everything passes.
pub type PlanId = u32;
/// A workload's slot in the `WORKLOADS` array. 0 is never given out.
pub type WorkloadId = u32;

/// Key of the exact rule tables: an endpoint within a plan.
/// In the inbound table a wildcard address means any local address of its family.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RuleKey {
    /// The plan.
    pub plan: PlanId,
    /// The destination.
    pub dst: Endpoint,
}

/// Data of a prefix rule's key, after the LPM trie's own `prefixlen`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PrefixKey {
    /// The plan.
    pub plan: PlanId,
    /// The destination port, or 0 for rules of any port.
    pub port: u16,
    /// [`PrefixKey::OUTBOUND`] or [`PrefixKey::VIRTUAL`]: two tables in one trie.
    pub table: u16,
    /// The destination network.
    pub addr: Addr,
}

impl PrefixKey {
    /// Outbound rules.
    pub const OUTBOUND: u16 = 0;
    /// Destinations (of any port) that are captured where they arrive at a virtual interface.
    pub const VIRTUAL: u16 = 1;
    /// Bits before the address, all of them significant in every entry.
    pub const HEAD_BITS: u32 = 64;
    /// Bits of a complete key.
    pub const FULL_BITS: u32 = Self::HEAD_BITS + 128;
}

/// Key of one backend of a rule that has several.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BackendKey {
    /// The plan.
    pub plan: PlanId,
    /// The rule's group.
    pub group: u32,
    /// 0 .. the rule's `backends`.
    pub index: u32,
}

/// Key of a socket in a workload: a listening socket by its bind address (`SOCKETS`), a local
/// address with port 0 (`LOCAL_ADDRS`).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct WorkloadEndpoint {
    /// The workload.
    pub workload: WorkloadId,
    /// The address and port.
    pub endpoint: Endpoint,
}

/// Key of `ORIGINAL_DST`: a connection between two sockets of a workload. Both ends, since a client
/// may have several connections from one source port.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tuple {
    /// The workload.
    pub workload: WorkloadId,
    /// The end that connects.
    pub client: Endpoint,
    /// The end that accepts.
    pub server: Endpoint,
}

/// Key of `DESTINATIONS`: see [`crate::standin`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Slot {
    /// The workload.
    pub workload: WorkloadId,
    /// The slot of a destination.
    pub slot: u32,
}

/// Key of `OWNERS`: a user or group of a plan that matters, in a role.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct OwnerKey {
    /// The plan.
    pub plan: PlanId,
    /// `OwnerKey::PROXY_UID` and friends.
    pub role: u32,
    /// The uid or gid, in the workload's own user namespace.
    pub id: u32,
}

impl OwnerKey {
    /// A uid of the proxy.
    pub const PROXY_UID: u32 = 0;
    /// A gid of the proxy.
    pub const PROXY_GID: u32 = 1;
    /// A gid whose outbound connections are the only ones captured, or exempt.
    pub const GROUP: u32 = 2;
}

/// Key of `INTERFACES`: an interface of a workload's network namespace that, by a plan of the
/// workload's, is unlike others.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WorkloadInterface {
    /// The workload.
    pub workload: WorkloadId,
    /// The plan.
    pub plan: PlanId,
    /// The interface's index.
    pub index: u32,
}

/// Data of a route's key in `ROUTES`, after the LPM trie's own `prefixlen`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RouteKey {
    /// The workload.
    pub workload: WorkloadId,
    /// The destination network.
    pub addr: Addr,
}

impl RouteKey {
    /// Bits before the address, all of them significant in every entry.
    pub const HEAD_BITS: u32 = 32;
    /// Bits of a complete key.
    pub const FULL_BITS: u32 = Self::HEAD_BITS + 128;
}

/// Key of `LISTEN_INTEREST`: a port on which the plan may hand connections to a listener of the
/// workload, so that its listening sockets must be known.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct WorkloadPort {
    /// The workload.
    pub workload: WorkloadId,
    /// The port.
    pub port: u16,
    /// Always zero.
    pub pad: u16,
}
