//! The chained CNI plugin: a pod's containers start once its traffic is captured.
//!
//! Container runtimes run [the plugin](plugin) after those that have made the pod's network. It hands
//! the agent the network namespace itself ([`wire`]), and returns when capture of that pod is in force,
//! or the pod is none to be captured. [`install`] puts it on the node.

pub mod args;
pub mod config;
pub mod error;
pub mod install;
pub mod plugin;
pub mod server;
pub mod wire;

/// The plugin's `type`, which is the name of its program in the runtime's directories.
pub const TYPE: &str = "sidecar-agent";
