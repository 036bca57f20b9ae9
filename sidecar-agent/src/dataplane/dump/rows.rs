//! What is in the maps, as it is shown: numbers by their names, one row for an entry.

use serde::Serialize;

/// A row of a table: its columns are its fields, by name and in this order.
pub trait Row: Serialize {
    /// The names.
    const COLUMNS: &'static [&'static str];
}

macro_rules! rows {
    ($($(#[$about:meta])* struct $name:ident {
        $($(#[$doc:meta])* $field:ident: $type:ty,)+
    })+) => {$(
        $(#[$about])*
        #[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
        pub struct $name { $($(#[$doc])* pub $field: $type,)+ }

        impl Row for $name {
            const COLUMNS: &'static [&'static str] = &[$(stringify!($field),)+];
        }
    )+};
}

/// Names of the flags that are set.
pub type Flags = Vec<&'static str>;

rows! {
    /// A set of maps.
    struct SetRow {
        /// Its number.
        set: u16,
        /// Its ABI; none: it is not complete.
        abi: Option<u32>,
        /// All its maps are there.
        complete: bool,
        /// Why its maps are not read.
        problem: Option<String>,
    }
    /// A word of `WORKLOADS`.
    struct WorkloadRow {
        /// The workload.
        slot: u32,
        /// The set that decides.
        set: u16,
        /// The plan that it follows; 0: none.
        plan: u32,
        /// Everything new passes.
        suspended: bool,
        /// Everything new passes should the plan not be in the maps.
        open: bool,
        /// The ids of the cgroups that its links are attached to.
        cgroups: Vec<u64>,
    }
    /// An entry of `PLANS`, with that of `DIGESTS`.
    struct PlanRow {
        /// The set.
        set: u16,
        /// The plan.
        plan: u32,
        /// Its digest; none: it is not complete, or one that only refuses.
        digest: Option<String>,
        /// Tables in which it has entries.
        tables: Flags,
        /// What else holds.
        flags: Flags,
        /// Outbound connections that no rule matches.
        outbound_default: String,
        /// Inbound connections that no rule matches.
        inbound_default: String,
        /// The proxy's outbound port.
        outbound_port: u16,
        /// The proxy's inbound port.
        inbound_port: u16,
        /// The proxy's tunnel port.
        tunnel_port: u16,
        /// The proxy's port for DNS; 0: DNS is not captured.
        dns_port: u16,
        /// The proxy's first uid.
        proxy_uid: Option<u32>,
        /// The proxy's first gid.
        proxy_gid: Option<u32>,
        /// The network that is not captured as loopback.
        loopback: Option<String>,
    }
    /// An entry of `OUTBOUND`, `INBOUND` or `PREFIXES`.
    struct RuleRow {
        /// The set.
        set: u16,
        /// The plan.
        plan: u32,
        /// The address and port, or the network and port (`*`: any), that it is for.
        destination: String,
        /// How connections travel.
        path: String,
        /// Why.
        reason: String,
        /// `exempt-self`, `first`; `virtual`: where it arrives at a virtual interface.
        flags: Flags,
        /// The listener in the plan.
        listener: Option<u32>,
        /// The group of backends, where there are several.
        group: Option<u32>,
        /// How many backends there are.
        backends: u32,
        /// The only backend.
        target: Option<String>,
    }
    /// An entry of `BACKENDS`.
    struct BackendRow {
        /// The set.
        set: u16,
        /// The plan.
        plan: u32,
        /// The rule's group.
        group: u32,
        /// Which of the group.
        index: u32,
        /// Where it is.
        target: String,
    }
    /// An entry of `OWNERS`.
    struct OwnerRow {
        /// The set.
        set: u16,
        /// The plan.
        plan: u32,
        /// `proxy-uid`, `proxy-gid` or `group`.
        role: String,
        /// The uid or gid, in the workload's user namespace.
        id: u32,
    }
    /// An entry of `INTERFACES`.
    struct InterfaceRow {
        /// The set.
        set: u16,
        /// The workload.
        workload: u32,
        /// The plan.
        plan: u32,
        /// The interface's index in the workload's network namespace.
        index: u32,
        /// `excluded`, `virtual`.
        flags: Flags,
    }
    /// An entry of `ROUTES`.
    struct RouteRow {
        /// The set.
        set: u16,
        /// The workload.
        workload: u32,
        /// The destination network.
        destination: String,
        /// The interface's index.
        interface: u32,
        /// Where connections come from, if known.
        source: Option<String>,
    }
    /// An entry of `LOCAL_ADDRS`.
    struct LocalAddrRow {
        /// The set.
        set: u16,
        /// The workload.
        workload: u32,
        /// An address of its own.
        address: String,
    }
    /// An entry of `LISTEN_INTEREST`.
    struct ListenInterestRow {
        /// The set.
        set: u16,
        /// The workload.
        workload: u32,
        /// The port whose listening sockets have to be known.
        port: u16,
        /// How many began to listen since.
        opened: u64,
    }
    /// An entry of `SOCKETS`.
    struct SocketRow {
        /// The set.
        set: u16,
        /// The workload.
        workload: u32,
        /// Where it listens; port 0: the relay's.
        listens: String,
    }
    /// An entry of `ORIGINAL_DST`.
    struct OriginalRow {
        /// The set.
        set: u16,
        /// The workload.
        workload: u32,
        /// The end that connects.
        client: String,
        /// The end that accepts.
        server: String,
        /// Where the connection was going.
        destination: String,
        /// The plan that decided.
        plan: u32,
        /// The listener in the plan.
        listener: Option<u32>,
        /// `rewritten`, `redirected`, `passes`, `captured` or `accepted`.
        kind: String,
    }
    /// An entry of `DESTINATIONS`.
    struct DestinationRow {
        /// The set.
        set: u16,
        /// The workload.
        workload: u32,
        /// The first of the addresses that stand for it.
        stand_in: String,
        /// The destination.
        destination: String,
    }
    /// The storage of a cgroup (`IDENTITIES`).
    struct IdentityRow {
        /// The set.
        set: u16,
        /// The cgroup's id.
        cgroup: u64,
        /// The workload; 0: not known yet, everything passes.
        workload: u32,
        /// `routed`.
        flags: Flags,
        /// The id of the proxy's own cgroup.
        proxy_cgroup: Option<u64>,
        /// The workload's network namespace, by its cookie, or by its inode number (`doctor` tells).
        netns: u64,
        /// The host's uid of the workload's uid 0.
        uid_base: u32,
        /// The host's gid of the workload's gid 0.
        gid_base: u32,
        /// Where IPv4 connections that leave it come from.
        source_v4: Option<String>,
        /// Where IPv6 connections that leave it come from.
        source_v6: Option<String>,
        /// The relay's port on 127.0.0.1.
        relay_port_v4: u16,
        /// The relay's port on `::1`.
        relay_port_v6: u16,
    }
    /// A link that runs one of our programs.
    struct LinkRow {
        /// The kernel's number for it.
        id: u32,
        /// The program's name.
        program: String,
        /// What it is attached to.
        target: String,
        /// Where it is pinned; none: it is an orphan.
        pin: Option<String>,
    }
    /// A word of `COUNTERS` that is not zero.
    struct CounterRow {
        /// The set.
        set: u16,
        /// The workload; 0: those that are gone, together.
        workload: u32,
        /// Seen from the workload.
        direction: &'static str,
        /// How they travelled.
        path: &'static str,
        /// Why.
        reason: &'static str,
        /// How many.
        count: u64,
    }
}
