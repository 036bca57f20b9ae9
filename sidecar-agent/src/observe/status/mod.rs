//! The agent's state, for `status` and for tests: what is wanted, what is in force, what is wrong.

mod told;

use std::{collections::BTreeMap, fmt, net::SocketAddr};

use serde::{Deserialize, Serialize};

use super::listeners::Listeners;

pub use told::{decisions, findings, maps};

/// Everything `sidecar-agent status` shows.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Kernel release.
    pub kernel: String,
    /// What the kernel has, of what the agent can do without: `docs/kernels.md`.
    #[serde(default)]
    pub kernel_features: BTreeMap<String, bool>,
    /// How many times the configuration was applied.
    pub generation: u64,
    /// The workloads of this node.
    pub workloads: Vec<WorkloadStatus>,
    /// What an earlier agent has left captured, and no workload has claimed: it stays so as long as a
    /// file cannot be read.
    pub unclaimed: Vec<Unclaimed>,
    /// Errors and warnings of the configuration in force: the worst hundred.
    pub diagnostics: Vec<serde_json::Value>,
    /// How many there are in all, by code.
    #[serde(default)]
    pub findings: Vec<FindingCount>,
    /// How full the maps are.
    pub maps: Vec<MapStatus>,
    /// How often each program is attached.
    #[serde(default)]
    pub programs: BTreeMap<String, usize>,
    /// Decisions of workloads that are gone.
    #[serde(default)]
    pub gone: Vec<DecisionCount>,
    /// The relay's counters.
    pub relay: RelayStatus,
    /// What was put back.
    #[serde(default)]
    pub healed: Healed,
    /// Where metrics and health are served; absent: nowhere.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub metrics: Option<SocketAddr>,
    /// What was counted of accelerated connections, by `docs/acceleration.md`; empty: no workload
    /// has asked for acceleration, or the kernel cannot.
    #[serde(default)]
    pub acceleration: BTreeMap<String, u64>,
    /// Who traces.
    #[serde(default)]
    pub trace: TraceStatus,
    /// The cluster as a source; absent: there is none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cluster: Option<ClusterStatus>,
}

/// The Kubernetes API as a source.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Everything was listed at least once. Before that nothing of it is in force.
    pub listed: bool,
    /// For so long something was not up to date; absent: everything is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub stale_seconds: Option<f64>,
    /// What is watched.
    pub kinds: Vec<ClusterKind>,
    /// What was decided of each pod of this node, and why.
    #[serde(default)]
    pub pods: Vec<serde_json::Value>,
}

/// One kind that is watched.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClusterKind {
    /// Its name.
    pub kind: String,
    /// Where the API server has it, such as `sidecars.networking.istio.io/v1`; absent: nowhere.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub resource: Option<String>,
    /// It was listed at least once, or is known to be nowhere.
    pub listed: bool,
    /// How many objects are kept.
    pub objects: usize,
    /// Why it is not up to date; absent: it is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub problem: Option<String>,
}

/// What other tools had taken away, and was put back, since the agent started.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Healed {
    /// Links attached, or pinned, again.
    pub links: u64,
    /// Pins of maps made again.
    pub map_pins: u64,
}

/// Who traces, and what they did not get.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct TraceStatus {
    /// How many clients there are.
    pub clients: usize,
    /// Decisions that found the kernel's ring full.
    pub lost_in_kernel: u64,
    /// Decisions that found a client's queue full, over all clients.
    pub lost_in_agent: u64,
}

/// Findings of one code.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FindingCount {
    /// `error` or `warning`.
    pub severity: String,
    /// The code, as in `docs/diagnostics.md`.
    pub code: String,
    /// How many.
    pub count: u64,
}

/// What nobody has claimed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Unclaimed {
    /// Its slot.
    pub slot: u32,
    /// The inode numbers of its cgroups.
    pub cgroups: Vec<u64>,
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
    /// Whether its new connections are captured.
    pub capture: CaptureStatus,
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
    /// Its listeners.
    #[serde(default)]
    pub listeners: Listeners,
}

/// State of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Its plan is in force.
    Captured,
    /// An older plan is in force: the wanted one could not be applied.
    Stale,
    /// It is not to be captured: everything new passes.
    Off,
    /// Nothing is in force yet; see `problem`. It is tried again every second.
    Pending,
}

impl State {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::Captured, Self::Stale, Self::Off, Self::Pending];

    /// The name in output and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Captured => "captured",
            Self::Stale => "stale",
            Self::Off => "off",
            Self::Pending => "pending",
        }
    }
}

/// Whether new connections of a workload are captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureStatus {
    /// They are to be.
    pub wanted: bool,
    /// Who says so.
    pub by: CaptureBy,
    /// The kernel does.
    pub actual: bool,
}

/// Who says whether a workload is captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CaptureBy {
    /// `sidecar-agent capture`.
    Operator,
    /// The workload's annotation.
    Annotation,
    /// Nobody: it is captured.
    Default,
}

impl fmt::Display for CaptureBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Operator => "operator",
            Self::Annotation => "annotation",
            Self::Default => "default",
        })
    }
}

/// Decisions of one kind.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DecisionCount {
    /// `outbound` or `inbound`.
    pub direction: String,
    /// The path's name.
    #[serde(default)]
    pub path: String,
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
    /// Entries in use; absent: the kernel did not tell.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub entries: Option<usize>,
    /// Most entries; absent: it has no such limit.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub capacity: Option<u32>,
    /// Updates that the kernel refused.
    #[serde(default)]
    pub refused_updates: u64,
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
    /// Connections refused because of the connection limit.
    #[serde(default)]
    pub limited: u64,
    /// Connections whose target could not be reached.
    pub failed: u64,
    /// Connections led to where they were going, as their target could not be reached.
    #[serde(default)]
    pub fell_back: u64,
    /// The same, by cause.
    #[serde(default)]
    pub failed_by: BTreeMap<String, u64>,
    /// Connections that ended by a reset or another error after both sides were connected.
    #[serde(default)]
    pub reset: u64,
    /// Failures to accept a connection.
    #[serde(default)]
    pub accept_errors: u64,
    /// Bytes delivered to targets.
    #[serde(default)]
    pub bytes_to_target: u64,
    /// Bytes delivered to clients.
    #[serde(default)]
    pub bytes_to_client: u64,
}
