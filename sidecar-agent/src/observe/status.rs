//! The agent's state, for `status` and for tests: what is wanted, what is in force, what is wrong.

use serde::{Deserialize, Serialize};

/// Everything `sidecar-agent status` shows.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Kernel release.
    pub kernel: String,
    /// How many times the configuration was applied.
    pub generation: u64,
    /// The workloads of this node.
    pub workloads: Vec<WorkloadStatus>,
    /// Errors and warnings of the configuration in force.
    pub diagnostics: Vec<serde_json::Value>,
    /// Map entries in use.
    pub maps: Vec<MapStatus>,
    /// The relay's counters.
    pub relay: RelayStatus,
}

/// One workload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkloadStatus {
    /// `namespace/name`.
    pub workload: String,
    /// What it is doing.
    pub state: State,
    /// What is wrong: why it is not captured, or what of its plan is not served.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub problem: Option<String>,
    /// Its cgroup, below the cgroup2 root.
    pub cgroup: String,
    /// Its network namespace; absent: the host's.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub netns: Option<String>,
    /// The Sidecar that applies, with file and line; absent: Istio's built-in default.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sidecar: Option<String>,
    /// Digest of the plan that is wanted.
    pub wanted: String,
    /// Digest of the plan in the kernel; absent: none, everything passes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub actual: Option<String>,
    /// Decisions so far.
    pub decisions: Vec<DecisionCount>,
}

/// State of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Its plan is in force.
    Captured,
    /// An older plan is in force: the wanted one could not be applied.
    Stale,
    /// Nothing is in force yet; see `problem`. It is tried again every second.
    Pending,
}

/// Decisions of one kind.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DecisionCount {
    /// `outbound` or `inbound`.
    pub direction: String,
    /// The reason's name.
    pub reason: String,
    /// How many.
    pub count: u64,
}

/// Fill of one map.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MapStatus {
    /// Its name.
    pub map: String,
    /// Entries in use.
    pub entries: usize,
    /// Most entries.
    pub capacity: u32,
}

/// Counters of the relay.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RelayStatus {
    /// Connections open now.
    pub active: u64,
    /// Connections accepted so far.
    pub accepted: u64,
    /// Connections reset because they lead nowhere.
    pub refused: u64,
    /// Connections whose target could not be reached.
    pub failed: u64,
}
