//! `WorkloadEntry`: a workload without Kubernetes. One that names a cgroup is on this node.

use std::collections::BTreeMap;

/// What the keys of all annotations of this agent begin with.
pub const ANNOTATION_PREFIX: &str = "capture.sidecar-agent.io/";
/// Binds the workload to the node: path below the cgroup2 root.
pub const CGROUP_ANNOTATION: &str = "capture.sidecar-agent.io/cgroup";
/// The workload's network namespace (a path); the host's if absent.
pub const NETNS_ANNOTATION: &str = "capture.sidecar-agent.io/netns";
/// The directory that is `/` for paths of the workload's unix sockets, such as `/proc/<pid>/root`;
/// the agent's own root directory if absent. No symbolic link leads out of it.
pub const ROOT_ANNOTATION: &str = "capture.sidecar-agent.io/root";
/// `none` or `external`: whether the workload has a sidecar proxy.
pub const PROXY_ANNOTATION: &str = "capture.sidecar-agent.io/proxy";
/// A `ProxyConfig` as YAML, of this workload only.
pub const PROXY_CONFIG_ANNOTATION: &str = "proxy.istio.io/config";
/// Further addresses of the workload, separated by commas; the first is `spec.address`.
pub const ADDRESSES_ANNOTATION: &str = "capture.sidecar-agent.io/addresses";
/// The proxy's own cgroup, below the cgroup2 root, if it is not the workload's.
pub const PROXY_CGROUP_ANNOTATION: &str = "capture.sidecar-agent.io/proxy-cgroup";

/// `on` (default) or `off`: whether the workload's traffic is captured, as long as no operator has
/// said otherwise (`sidecar-agent capture`).
pub const CAPTURE_ANNOTATION: &str = "capture.sidecar-agent.io/capture";

/// What the agent itself says of a pod: `captured`, `pending: WHY`, ...
pub const STATUS_ANNOTATION: &str = "capture.sidecar-agent.io/status";

/// What becomes of the workload's connections when something fails, as far as the node's default is
/// not what is wanted: see [`FailurePolicy`](super::FailurePolicy).
pub const FAILURE_POLICY_ANNOTATION: &str = "capture.sidecar-agent.io/failure-policy";

/// `WorkloadEntry.spec`; also an element of `ServiceEntry.endpoints`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkloadEntry {
    /// `address`: an IP, a host name, or `unix:///path`; empty where absent.
    pub address: String,
    /// `ports`: name to number.
    pub ports: BTreeMap<String, u16>,
    /// `labels`: what selectors match.
    pub labels: BTreeMap<String, String>,
    /// `serviceAccount`, `network`, ... are accepted and not used.
    pub weight: u32,
    /// It is a pod: which services it is an endpoint of, and when, is the cluster's business.
    pub is_pod: bool,
}
