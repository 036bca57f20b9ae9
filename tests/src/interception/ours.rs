//! Interception by the agent's data plane.

use std::sync::Arc;

use anyhow::Context as _;
use sidecar_agent::{
    compile::WorkloadPlan,
    conformance::iptables::{cases::OptionSet, workload},
    dataplane::{Binding, Capacity, Config, Dataplane, cgroup, default_pin_dir, netns::Netns},
};
use sidecar_common::keys::WorkloadId;

use super::{pod::Pod, side::Side};
use crate::Bpffs;

/// Room for one workload, and for the plans of many option sets.
const CAPACITY: Capacity = Capacity {
    workloads: 4,
    plans: 128,
    rules: 8192,
    sockets: 64,
    original_dst: 1024,
};

/// The real programs, in a pod.
pub struct Ours {
    // Dropped in this order: pins are removed before their file system goes, and nothing is
    // attached to what is gone.
    dataplane: Dataplane,
    _bpffs: Bpffs,
    workload: WorkloadId,
    pod: Pod,
}

impl Ours {
    /// A pod to which the programs are attached; it has no plan yet.
    ///
    /// # Errors
    /// When the pod cannot be made, or the programs cannot be loaded or attached.
    pub fn new() -> anyhow::Result<Self> {
        let pod = Pod::new()?;
        let bpffs = Bpffs::temporary()?;
        let mut dataplane = Dataplane::load(&Config {
            pin_dir: default_pin_dir(bpffs.path()),
            capacity: CAPACITY,
        })?;
        let root = cgroup::root()?;
        let path = pod.cgroup.path().strip_prefix(&root)?;
        let path = path.to_str().context("the cgroup's path is not UTF-8")?;
        let workload = dataplane.attach(&Binding {
            cgroup: &cgroup::Cgroup::open(&root, path)?,
            proxy_cgroup: None,
            netns: &Netns::open(pod.netns.path().to_str())?,
        })?;
        Ok(Self {
            dataplane,
            _bpffs: bpffs,
            workload,
            pod,
        })
    }
}

impl Side for Ours {
    fn name(&self) -> &'static str {
        "sidecar-agent"
    }

    fn pod(&self) -> &Pod {
        &self.pod
    }

    fn apply(&mut self, options: &OptionSet) -> anyhow::Result<()> {
        let WorkloadPlan { plan, digest, .. } = workload(options);
        let plan = Arc::clone(&plan);
        let id = self
            .dataplane
            .install(&digest, &plan)
            .context("installing the plan")?;
        self.dataplane
            .switch(self.workload, id, &plan)
            .context("switching to the plan")
    }

    fn wants_transparent_listeners(&self) -> bool {
        false
    }

    fn listening(&mut self) -> anyhow::Result<()> {
        // Those that listened before the plan was in force have not entered themselves.
        self.dataplane.refresh();
        Ok(())
    }
}
