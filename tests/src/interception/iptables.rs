//! Interception by iptables, as istio-iptables sets it up.

use sidecar_agent::conformance::iptables::cases::OptionSet;

use super::{
    pod::Pod,
    rules::{self, Family, TPROXY_MARK},
    side::Side,
};
use crate::{
    Place,
    command::{output, output_with_input},
};

/// The routing table of packets with [`TPROXY_MARK`].
const TPROXY_TABLE: u32 = 133;

/// The real rules, in a pod.
#[derive(Debug)]
pub struct Iptables {
    pod: Pod,
}

impl Iptables {
    /// A pod without rules.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new() -> anyhow::Result<Self> {
        let pod = Pod::new()?;
        // Of no effect while nothing is marked.
        for family in ["-4", "-6"] {
            for args in [
                format!("{family} rule add fwmark {TPROXY_MARK} lookup {TPROXY_TABLE}"),
                format!("{family} route add local default dev lo table {TPROXY_TABLE}"),
            ] {
                pod.netns.ip(&args)?;
            }
        }
        Ok(Self { pod })
    }
}

fn command(pod: &Pod, program: &str) -> std::process::Command {
    Place::here().netns(&pod.netns).command(program)
}

/// Has these rules be in force in a pod, and no others.
pub(super) fn restore(pod: &Pod, options: &OptionSet) -> anyhow::Result<()> {
    for (program, family) in [
        ("iptables-restore", Family::V4),
        ("ip6tables-restore", Family::V6),
    ] {
        let rules = rules::restore(options, family)?;
        output_with_input(&mut command(pod, program), &rules)?;
    }
    Ok(())
}

/// Conntrack does to a datagram what it did to an earlier one between the same ports.
pub(super) fn forget_flows(pod: &Pod) -> anyhow::Result<()> {
    output(command(pod, "conntrack").arg("--flush")).map(drop)
}

impl Side for Iptables {
    fn name(&self) -> &'static str {
        "iptables"
    }

    fn pod(&self) -> &Pod {
        &self.pod
    }

    fn apply(&mut self, options: &OptionSet) -> anyhow::Result<()> {
        restore(&self.pod, options)
    }

    fn wants_transparent_listeners(&self) -> bool {
        true
    }

    fn forget_flows(&self) -> anyhow::Result<()> {
        forget_flows(&self.pod)
    }
}
