//! What the node lacks, and what is in the way: each thing is looked at by trying it, on things of
//! our own where that is possible. [`examine`] looks at everything; [`preflight`] at what takes no
//! time, before `run` starts.
//!
//! One file per family of checks: a probing shell, and a pure judgement of what it has seen.

mod bpffs;
mod capabilities;
pub mod catalogue;
mod cgroups;
mod hooks;
mod kernel;
mod limits;
mod packet_filter;
pub mod report;
mod workloads;

use std::path::PathBuf;

use anyhow::{Result, bail};

pub use self::{
    kernel::{FEATURES, Known},
    report::{Check, Report},
    workloads::WorkloadPlace,
};

/// What to look at.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where bpffs is mounted, or is to be.
    pub bpffs: PathBuf,
    /// The workloads of this node, as far as they are known.
    pub workloads: Vec<WorkloadPlace>,
    /// This agent's program.
    pub program: PathBuf,
}

/// Looks at everything. Takes some seconds: all programs are loaded.
#[must_use]
pub fn examine(options: &Options) -> Report {
    let places = workloads::find(&options.workloads);
    let checks = [
        vec![kernel::release()],
        kernel::features(&options.program),
        cgroups::layout(),
        places.iter().flat_map(workloads::Found::checks).collect(),
        bpffs::look(&options.bpffs),
        capabilities::look(),
        limits::look(),
        hooks::look(&places),
        packet_filter::look(&places),
    ];
    Report::new(checks.concat())
}

/// What is looked at before `run` starts: neither programs are loaded, which it does itself, nor
/// are other programs run. Warnings are logged.
///
/// # Errors
/// If something is missing that the agent cannot do without: with all of that.
pub fn preflight(bpffs: &std::path::Path) -> Result<()> {
    let checks = [
        cgroups::layout(),
        bpffs::look(bpffs),
        capabilities::look(),
        hooks::look(&[]),
    ];
    let report = Report::new(checks.concat());
    let mut missing = Vec::new();
    for (check, text) in report.findings() {
        if check.state == report::State::Missing {
            missing.push(text);
        } else if let Some(finding) = &check.finding {
            tracing::warn!(
                code = finding.code,
                check = check.check,
                found = check.found,
                lost = finding.lost,
                remedy = finding.remedy,
                "{}",
                finding.name
            );
        }
    }
    if !missing.is_empty() {
        bail!(
            "this node lacks what the agent needs (`sidecar-agent doctor` tells more):\n{}",
            missing.join("\n")
        );
    }
    Ok(())
}
