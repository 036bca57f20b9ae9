//! How large the maps are.

use sidecar_common::values::DECISION_SLOTS;

/// Capacities, in entries. Memory is taken only for entries in use, except the map `ORIGINAL_DST` and the
/// counters (4 KiB for each of `workloads`).
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Workloads on this node.
    pub workloads: u32,
    /// Plans, current and just retired.
    pub plans: u32,
    /// Exact rules, prefix rules and backends, each, of all plans together.
    pub rules: u32,
    /// Listening sockets that captured connections are handed to.
    pub sockets: u32,
    /// Redirected connections whose original destination is remembered, and destinations that have
    /// stand-ins (`sidecar_common::standin`).
    pub original_dst: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            workloads: 1024,
            plans: 4096,
            rules: 262_144,
            sockets: 16_384,
            original_dst: 65_536,
        }
    }
}

impl Capacity {
    /// Words of counters.
    pub(in crate::dataplane) fn counters(&self) -> u32 {
        self.workloads.saturating_mul(DECISION_SLOTS)
    }

    /// Every map whose size is configured, by name.
    #[must_use]
    pub fn entries(&self) -> [(&'static str, u32); 14] {
        [
            // Each workload has one beside, that refuses everything.
            ("PLANS", self.plans.saturating_add(self.workloads)),
            ("OUTBOUND", self.rules),
            ("PREFIXES", self.rules),
            ("INBOUND", self.rules),
            ("BACKENDS", self.rules),
            ("OWNERS", self.rules),
            ("INTERFACES", self.workloads.saturating_mul(16)),
            ("ROUTES", self.workloads.saturating_mul(16)),
            ("LOCAL_ADDRS", self.workloads.saturating_mul(16)),
            ("LISTEN_INTEREST", self.sockets),
            ("SOCKETS", self.sockets),
            ("ORIGINAL_DST", self.original_dst),
            ("DESTINATIONS", self.original_dst),
            ("COUNTERS", self.counters()),
        ]
    }
}
