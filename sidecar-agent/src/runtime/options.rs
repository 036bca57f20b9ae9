//! What the agent is started with.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use crate::{
    cni::install::Install,
    dataplane::{self, Capacity},
    model::{Compat, FailurePolicy},
    observe::events,
    source::{kube, pods::select::Policy},
};

/// What is read of a cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Where it is.
    pub source: kube::Options,
    /// Which of its pods are captured.
    pub pods: Policy,
    /// The host's /proc, where pods are found.
    pub host_proc: PathBuf,
    /// What is told of its pods in the cluster; `None`: nothing.
    pub told: Option<events::Options>,
    /// The CNI plugin to be installed, and kept; `None`: it is somebody else's business.
    pub cni: Option<Install>,
}

/// Settings of a running agent.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of resources, if any.
    pub config: Option<PathBuf>,
    /// File with the mesh configuration.
    pub mesh_config: Option<PathBuf>,
    /// The cluster as a source; `None`: it is none.
    pub cluster: Option<Cluster>,
    /// Directory of the admin socket.
    pub run_dir: PathBuf,
    /// Directory of what outlives the agent, and the machine's restart.
    pub state_dir: PathBuf,
    /// Mount point of bpffs.
    pub bpffs: PathBuf,
    /// Name servers; empty: the system's.
    pub dns_servers: Vec<SocketAddr>,
    /// What becomes of connections when something fails, where a workload does not say.
    pub failure_policy: FailurePolicy,
    /// Whose rules say what is valid.
    pub compat: Compat,
    /// Map capacities.
    pub capacity: Capacity,
    /// Take over from the agent that runs with this run directory, if one does.
    pub take_over: bool,
    /// Having been relieved, wait for a signal.
    pub await_stop: bool,
    /// How long live relayed connections may go on when the agent ends.
    pub drain: Duration,
    /// Where metrics and health are served; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// What this agent is called, where health is asked of one agent.
    pub instance: String,
    /// Decisions are told by workload in metrics.
    pub metrics_per_workload: bool,
    /// Longest time in which the main loop must turn once.
    pub stall_limit: Duration,
}

impl Options {
    /// Where, and how large, the kernel side is.
    pub(super) fn dataplane(&self) -> dataplane::Config {
        dataplane::Config {
            pin_dir: dataplane::default_pin_dir(&self.bpffs),
            capacity: self.capacity,
        }
    }
}
