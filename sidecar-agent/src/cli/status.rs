//! `status`.

use std::process::ExitCode;

use anyhow::Result;

use super::{
    inputs::RunDir,
    output::{Format, print, table},
};
use crate::observe::status::Status;

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    agent: RunDir,
    #[command(flatten)]
    format: Format,
}

/// Asks the running agent and prints its answer.
pub fn run(args: &Args) -> Result<ExitCode> {
    let status = args.agent.status()?;
    print(args.format, &*status, || human(&status))?;
    Ok(ExitCode::SUCCESS)
}

fn human(status: &Status) -> String {
    let workloads = status.workloads.iter().map(|workload| {
        let decisions: u64 = workload
            .decisions
            .iter()
            .map(|decision| decision.count)
            .sum();
        vec![
            workload.workload.clone(),
            workload.state.name().into(),
            workload
                .sidecar
                .clone()
                .unwrap_or_else(|| "(none: Istio's default)".into()),
            decisions.to_string(),
            workload.problem.clone().unwrap_or_default(),
        ]
    });
    let diagnostics = status.diagnostics.iter().map(|diagnostic| {
        let field = |name: &str| diagnostic[name].as_str().unwrap_or_default();
        match field("rendered") {
            "" => format!(
                "{} {}: {}",
                field("severity"),
                field("code"),
                field("message")
            ),
            rendered => format!("\n{}", rendered.trim_end()),
        }
    });
    let head = format!(
        "sidecar-agent {}, pid {}, kernel {}, configuration applied {} times",
        status.version, status.pid, status.kernel, status.generation
    );
    let table = table(
        &["WORKLOAD", "STATE", "SIDECAR", "DECISIONS", "PROBLEM"],
        workloads,
    );
    let all: u64 = status.findings.iter().map(|of| of.count).sum();
    let told = status.diagnostics.len();
    let more = usize::try_from(all)
        .unwrap_or(usize::MAX)
        .saturating_sub(told);
    let more =
        (more > 0).then(|| format!("\nand {more} more: `sidecar-agent check` tells them all"));
    [head, table]
        .into_iter()
        .chain(diagnostics)
        .chain(more)
        .collect::<Vec<_>>()
        .join("\n")
}
