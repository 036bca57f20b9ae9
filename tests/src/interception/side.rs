//! Whatever intercepts a pod's traffic.

use sidecar_agent::conformance::iptables::cases::OptionSet;

use super::pod::Pod;

/// An implementation of interception, in force in a pod of its own.
pub trait Side {
    /// What it calls itself in failures.
    fn name(&self) -> &'static str;

    /// Its pod.
    fn pod(&self) -> &Pod;

    /// Puts an option set in force, in place of the one before. No process of the pod listens.
    ///
    /// # Errors
    /// When it cannot.
    fn apply(&mut self, options: &OptionSet) -> anyhow::Result<()>;

    /// Whether the proxy's listeners must be transparent under `TPROXY`, for which the proxy needs
    /// `CAP_NET_ADMIN`.
    fn wants_transparent_listeners(&self) -> bool;

    /// Called once the proxy listens, for a side that has to know.
    ///
    /// # Errors
    /// When it cannot learn of it.
    fn listening(&mut self) -> anyhow::Result<()> {
        Ok(())
    }

    /// Called before each attempt: what earlier ones have left behind is to play no part.
    ///
    /// # Errors
    /// When it cannot be made to.
    fn forget_flows(&self) -> anyhow::Result<()> {
        Ok(())
    }
}
