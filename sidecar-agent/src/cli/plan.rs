//! `plan`.

use std::{fmt::Display, process::ExitCode};

use anyhow::Result;
use serde::Serialize;
use sidecar_common::{Path, Reason, decide::Direction, values::Rule};

use super::{
    inputs::Inputs,
    output::{Format, print, table},
};
use crate::compile::{Plan, Target, WorkloadPlan};

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

/// One workload's plan, for printing.
#[derive(Serialize)]
struct Printed {
    workload: String,
    digest: String,
    cgroup: String,
    netns: Option<String>,
    sidecar: Option<String>,
    rules: Vec<PrintedRule>,
    unix_listeners: Vec<UnixListener>,
}

#[derive(Serialize)]
struct PrintedRule {
    direction: &'static str,
    destination: String,
    path: Path,
    reason: Reason,
    targets: Vec<String>,
    listener: Option<String>,
    resource: Option<String>,
}

#[derive(Serialize)]
struct UnixListener {
    bind: String,
    targets: Vec<String>,
    resource: Option<String>,
}

/// Prints what would be programmed.
pub fn run(args: &Args) -> Result<ExitCode> {
    let node = args.inputs.compile()?;
    let printed: Vec<Printed> = node
        .workloads
        .iter()
        .map(printed)
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

fn printed(workload: &WorkloadPlan) -> Printed {
    let plan = &workload.plan;
    let mut rules = Vec::new();
    let mut add = |direction: Direction, destination: &dyn Display, rule: &Rule| {
        rules.push(rule_of(plan, direction, destination, rule));
    };
    for (destination, rule) in &plan.outbound {
        add(Direction::Outbound, destination, rule);
    }
    for ((port, net), rule) in &plan.outbound_prefixes {
        let port = if *port == 0 {
            "*".to_owned()
        } else {
            port.to_string()
        };
        add(
            Direction::Outbound,
            &format_args!("{net} port {port}"),
            rule,
        );
    }
    add(
        Direction::Outbound,
        &"everything else",
        &plan.header.outbound_default,
    );
    for (destination, rule) in &plan.inbound {
        add(Direction::Inbound, destination, rule);
    }
    add(
        Direction::Inbound,
        &"everything else",
        &plan.header.inbound_default,
    );
    Printed {
        workload: workload.workload.to_string(),
        digest: workload.digest.to_hex().to_string(),
        cgroup: workload.workload.cgroup.clone(),
        netns: workload.workload.netns.clone(),
        sidecar: workload
            .workload
            .sidecar
            .as_ref()
            .map(|sidecar| sidecar.reference("Sidecar").to_string()),
        rules,
        unix_listeners: plan
            .listeners
            .iter()
            .filter_map(|listener| {
                Some(UnixListener {
                    bind: listener.unix_bind.as_ref()?.to_string(),
                    targets: listener.targets.iter().map(Target::to_string).collect(),
                    resource: listener.resource.as_ref().map(ToString::to_string),
                })
            })
            .collect(),
    }
}

fn rule_of(
    plan: &Plan,
    direction: Direction,
    destination: &dyn Display,
    rule: &Rule,
) -> PrintedRule {
    let listener = usize::try_from(rule.listener)
        .ok()
        .and_then(|index| plan.listeners.get(index));
    let path = Path::from_number(rule.path).unwrap_or(Path::Deny);
    let targets = match path {
        Path::Direct if rule.backends == 1 => vec![rule.target.to_string()],
        Path::Direct => usize::try_from(rule.group)
            .ok()
            .filter(|_| rule.backends > 1)
            .and_then(|group| plan.backends.get(group))
            .map(|group| group.iter().map(ToString::to_string).collect())
            .unwrap_or_default(),
        Path::Relay => listener
            .map(|listener| listener.targets.iter().map(Target::to_string).collect())
            .unwrap_or_default(),
        Path::Proxy => {
            let port = match direction {
                Direction::Outbound => plan.header.outbound_port,
                Direction::Inbound => plan.header.inbound_port,
            };
            vec![format!("the proxy's port {port}")]
        }
        Path::Pass | Path::Deny => Vec::new(),
    };
    PrintedRule {
        direction: direction.name(),
        destination: destination.to_string(),
        path,
        reason: Reason::from_number(rule.reason).unwrap_or(Reason::PlanIncomplete),
        targets,
        listener: listener.map(|listener| listener.name.clone()),
        resource: listener
            .and_then(|listener| listener.resource.as_ref())
            .map(ToString::to_string),
    }
}

fn human(plan: &Printed) -> String {
    let rules = plan.rules.iter().map(|rule| {
        vec![
            rule.direction.to_owned(),
            rule.destination.clone(),
            rule.path.to_string(),
            rule.reason.to_string(),
            rule.targets.join(", "),
            rule.listener.clone().unwrap_or_default(),
        ]
    });
    let unix = plan.unix_listeners.iter().map(|listener| {
        vec![
            "outbound".to_owned(),
            listener.bind.clone(),
            Path::Relay.to_string(),
            Reason::EgressListener.to_string(),
            listener.targets.join(", "),
            String::new(),
        ]
    });
    format!(
        "{} (plan {:.12}, {})\n{}",
        plan.workload,
        plan.digest,
        plan.sidecar
            .as_deref()
            .unwrap_or("no Sidecar: Istio's default"),
        table(
            &[
                "DIRECTION",
                "DESTINATION",
                "PATH",
                "REASON",
                "TARGETS",
                "LISTENER"
            ],
            rules.chain(unix)
        )
    )
}
