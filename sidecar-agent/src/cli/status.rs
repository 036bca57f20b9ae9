//! `status`.

use std::process::ExitCode;

use anyhow::Result;

use super::{
    inputs::RunDir,
    output::{Format, print, table},
};
use crate::observe::status::{ClusterStatus, Status};

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
    let cluster = status.cluster.as_ref().map(cluster);
    [Some(head), cluster, Some(table)]
        .into_iter()
        .flatten()
        .chain(diagnostics)
        .collect::<Vec<_>>()
        .join("\n")
}

fn cluster(cluster: &ClusterStatus) -> String {
    let problems = cluster.kinds.iter().filter_map(|kind| {
        let problem = kind.problem.as_ref()?;
        Some(format!("\n  {}: {problem}", kind.kind))
    });
    let problems: String = problems.collect();
    let objects: usize = cluster.kinds.iter().map(|kind| kind.objects).sum();
    match (cluster.listed, cluster.stale_seconds) {
        (false, _) => format!("cluster: not listed yet; nothing changes until it is{problems}"),
        (true, Some(seconds)) => {
            format!("cluster: {objects} objects, not up to date for {seconds:.0} s{problems}")
        }
        (true, None) => format!("cluster: {objects} objects, up to date"),
    }
}
