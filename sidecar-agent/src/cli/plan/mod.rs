//! `plan`.

mod printed;

use std::{fmt::Write as _, process::ExitCode};

use anyhow::Result;
use sidecar_common::{Path, Reason, decide::Direction};

use self::printed::{Origins, Printed, printed};
use super::{
    inputs::{Compiled, Inputs},
    output::{Format, print, table},
};

/// Arguments of `plan`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    inputs: Inputs,
    /// Only this workload, as `namespace/name`.
    workload: Option<String>,
    #[command(flatten)]
    format: Format,
}

/// Prints what would be programmed.
pub fn run(args: &Args) -> Result<ExitCode> {
    let Compiled { node, places } = args.inputs.compile()?;
    let printed: Vec<Printed> = node
        .workloads
        .iter()
        .map(|workload| {
            let origins = Origins {
                workload: &workload.workload,
                mesh: node.mesh.as_ref(),
                places: &places,
            };
            printed(workload, &origins)
        })
        .filter(|plan| {
            args.workload
                .as_ref()
                .is_none_or(|wanted| *wanted == plan.workload)
        })
        .collect();
    print(args.format, &printed, || {
        printed.iter().map(human).collect::<Vec<_>>().join("\n\n")
    })?;
    Ok(ExitCode::SUCCESS)
}

fn human(plan: &Printed) -> String {
    let rules = plan.rules.iter().map(|rule| {
        let mut targets = rule.targets.join(", ");
        if let Some(gone) = &rule.while_gone {
            _ = write!(targets, " (gone: {})", gone.path);
        }
        vec![
            rule.direction.to_owned(),
            rule.destination.clone(),
            rule.path.to_string(),
            rule.reason.to_string(),
            targets,
            rule.listener.clone().unwrap_or_default(),
            rule.declared.clone().unwrap_or_default(),
        ]
    });
    let unix = plan.unix_listeners.iter().map(|listener| {
        vec![
            listener.direction.to_owned(),
            listener.bind.clone(),
            Path::Relay.to_string(),
            if listener.direction == Direction::Inbound.name() {
                Reason::IngressListener.to_string()
            } else {
                Reason::EgressListener.to_string()
            },
            listener.targets.join(", "),
            String::new(),
            listener.declared.clone().unwrap_or_default(),
        ]
    });
    format!(
        "{} (plan {:.12}, {}){}\nfailure policy: {}\n{}",
        plan.workload,
        plan.digest,
        plan.sidecar
            .as_deref()
            .unwrap_or("no Sidecar: Istio's default"),
        plan.callers,
        plan.failure_policy,
        table(
            &[
                "DIRECTION",
                "DESTINATION",
                "PATH",
                "REASON",
                "TARGETS",
                "LISTENER",
                "DECLARED"
            ],
            rules.chain(unix)
        )
    )
}
