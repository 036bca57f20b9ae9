//! `plan`.

use std::{
    fmt::{Display, Write as _},
    process::ExitCode,
};

use anyhow::Result;
use serde::Serialize;
use sidecar_common::{Path, Reason, decide::Direction, values::Rule};

use super::{
    callers::Callers,
    inputs::{Compiled, Inputs},
    output::{Format, print, table},
};
use crate::{
    compile::{Listener, Plan, Target, WorkloadPlan},
    explain::{WhileGone, while_gone},
    model::{FailurePolicy, ResourceRef, diagnostic::Location},
    resolve::{
        ResolvedWorkload,
        declared::{self, Declared},
    },
    source::files::Places,
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

/// One workload's plan, for printing.
#[derive(Serialize)]
struct Printed {
    workload: String,
    digest: String,
    cgroup: String,
    netns: Option<String>,
    sidecar: Option<String>,
    callers: Callers,
    failure_policy: FailurePolicy,
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
    /// What becomes of connections while what is to take them is gone.
    while_gone: Option<WhileGone>,
    listener: Option<String>,
    resource: Option<String>,
    field: String,
    /// `file:line` of the field.
    declared: Option<String>,
}

#[derive(Serialize)]
struct UnixListener {
    direction: &'static str,
    bind: String,
    targets: Vec<String>,
    resource: Option<String>,
    field: String,
    declared: Option<String>,
}

/// What decides, and where that was written.
struct Origins<'a> {
    workload: &'a ResolvedWorkload,
    mesh: Option<&'a ResourceRef>,
    places: &'a Places,
}

impl Origins<'_> {
    fn of_rule(
        &self,
        direction: Direction,
        reason: Reason,
        listener: Option<&Listener>,
        port: u16,
    ) -> Option<Declared> {
        declared::declared(self.workload, self.mesh, direction, reason, listener, port)
    }

    fn place(&self, resource: &ResourceRef, field: &str) -> String {
        match self.places.locate(resource, field) {
            Some(Location { file, line, .. }) => format!("{file}:{line}"),
            None => format!("{}:{}", resource.file, resource.line),
        }
    }
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

fn printed(workload: &WorkloadPlan, origins: &Origins<'_>) -> Printed {
    let plan = &workload.plan;
    let mut rules = Vec::new();
    let mut add = |direction: Direction, destination: &dyn Display, port: u16, rule: &Rule| {
        rules.push(rule_of(plan, origins, direction, destination, port, rule));
    };
    for (destination, rule) in &plan.outbound.exact {
        add(Direction::Outbound, destination, destination.port, rule);
    }
    for ((port, net), rule) in &plan.outbound.prefixes {
        let number = *port;
        let port = if number == 0 {
            "*".to_owned()
        } else {
            port.to_string()
        };
        add(
            Direction::Outbound,
            &format_args!("{net} port {port}"),
            number,
            rule,
        );
    }
    add(
        Direction::Outbound,
        &"everything else",
        0,
        &plan.header.outbound_default,
    );
    for (destination, rule) in &plan.inbound {
        add(Direction::Inbound, destination, destination.port, rule);
    }
    add(
        Direction::Inbound,
        &"everything else",
        0,
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
        callers: Callers::of(plan),
        failure_policy: workload.workload.failure,
        rules,
        unix_listeners: plan
            .listeners()
            .filter_map(|listener| {
                Some(UnixListener {
                    direction: listener.direction.name(),
                    bind: listener.unix_bind()?.to_string(),
                    targets: listener.targets.iter().map(Target::to_string).collect(),
                    resource: plan.resource(listener).map(ToString::to_string),
                    field: listener.field(),
                    declared: plan
                        .resource(listener)
                        .map(|resource| origins.place(resource, &listener.field())),
                })
            })
            .collect(),
    }
}

fn rule_of(
    plan: &Plan,
    origins: &Origins<'_>,
    direction: Direction,
    destination: &dyn Display,
    port: u16,
    rule: &Rule,
) -> PrintedRule {
    let listener = plan.listener(rule.listener);
    let reason = Reason::from_number(rule.reason).unwrap_or(Reason::PlanIncomplete);
    let declared = origins.of_rule(direction, reason, listener, port);
    let path = Path::from_number(rule.path).unwrap_or(Path::Deny);
    let targets = match path {
        Path::Direct if rule.backends == 1 => vec![rule.target.to_string()],
        Path::Direct => usize::try_from(rule.group)
            .ok()
            .filter(|_| rule.backends > 1)
            .and_then(|group| plan.outbound.backends.get(group))
            .map(|group| group.iter().map(ToString::to_string).collect())
            .unwrap_or_default(),
        Path::Relay => listener
            .map(|listener| listener.targets.iter().map(Target::to_string).collect())
            .unwrap_or_default(),
        Path::Proxy => {
            let port = match direction {
                Direction::Outbound if reason == Reason::Dns => plan.header.dns_port,
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
        reason,
        targets,
        while_gone: while_gone(plan, direction, path, reason),
        listener: listener.map(ToString::to_string),
        resource: declared.as_ref().map(|by| by.resource.to_string()),
        declared: declared
            .as_ref()
            .map(|by| origins.place(&by.resource, &by.field)),
        field: declared.map(|by| by.field).unwrap_or_default(),
    }
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
