//! `doctor`: what this node lacks, and what is in the way.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};

use super::{
    inputs::{Bpffs, CompatArg},
    output::{Format, print, table},
};
use crate::{
    compile,
    doctor::{self, Options, Report, WorkloadPlace},
    source::files,
};

/// Arguments of `doctor`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of resources: the cgroups and network namespaces of its workloads are looked at,
    /// too.
    #[arg(long, env = "SIDECAR_AGENT_CONFIG", value_name = "DIR")]
    config: Option<PathBuf>,
    #[command(flatten)]
    compat: CompatArg,
    #[command(flatten)]
    bpffs: Bpffs,
    #[command(flatten)]
    format: Format,
}

/// Looks at everything; prints what was found.
pub(super) fn run(args: Args) -> Result<ExitCode> {
    let report = doctor::examine(&Options {
        workloads: workloads(&args),
        bpffs: args.bpffs.bpffs,
        program: std::env::current_exe().context("finding this program's own path")?,
    });
    print(args.format, &report, || human(&report))?;
    Ok(ExitCode::from(report.exit_code()))
}

/// Those of the configuration; what is wrong with it is `check`'s to say.
fn workloads(args: &Args) -> Vec<WorkloadPlace> {
    let paths: Vec<PathBuf> = args.config.iter().cloned().collect();
    let input = files::load(&paths, args.compat.compat);
    let plans = compile::plans(&input.snapshot).workloads;
    let place = |plan: compile::WorkloadPlan| WorkloadPlace {
        workload: plan.workload.to_string(),
        cgroup: plan.workload.cgroup.clone(),
        netns: plan.workload.netns.clone(),
    };
    plans.into_iter().map(place).collect()
}

/// A table of everything, and what is wrong once more, with all that is to be said about it.
fn human(report: &Report) -> String {
    let rows = report.checks.iter().map(|check| {
        let found = check.found.lines().next().unwrap_or_default();
        vec![check.check.clone(), check.state.name().into(), found.into()]
    });
    let mut text = table(&["CHECK", "STATE", "FOUND"], rows);
    for (_, finding) in report.findings() {
        text += "\n\n";
        text += &finding;
    }
    text + &format!(
        "\n\n{} missing, {} warnings",
        report.missing, report.warnings
    )
}
