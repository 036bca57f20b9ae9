//! Interception by the agent's data plane in a pod that has the rules of istio-iptables, too: one
//! that is on its way from one to the other.

use sidecar_agent::conformance::iptables::cases::OptionSet;

use super::{iptables, ours::Ours, pod::Pod, side::Side};

/// The real programs and the real rules, in one pod.
pub struct Both(Ours);

impl Both {
    /// A pod to which the programs are attached, without a plan and without rules.
    ///
    /// # Errors
    /// When the pod cannot be made, or the programs cannot be loaded or attached.
    pub fn new() -> anyhow::Result<Self> {
        Ours::new().map(Self)
    }
}

impl Side for Both {
    fn name(&self) -> &'static str {
        "sidecar-agent and iptables"
    }

    fn pod(&self) -> &Pod {
        self.0.pod()
    }

    fn apply(&mut self, options: &OptionSet) -> anyhow::Result<()> {
        iptables::restore(self.0.pod(), options)?;
        self.0.apply(options)
    }

    fn wants_transparent_listeners(&self) -> bool {
        true
    }

    fn listening(&mut self) -> anyhow::Result<()> {
        self.0.listening()
    }

    fn forget_flows(&self) -> anyhow::Result<()> {
        iptables::forget_flows(self.0.pod())
    }
}
