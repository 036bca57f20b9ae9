//! A plan, as it is printed.

use std::fmt::Display;

use serde::Serialize;
use sidecar_common::{Path, Reason, decide::Direction, values::Rule};

use crate::{
    cli::callers::Callers,
    compile::{Listener, Plan, Target, WorkloadPlan},
    explain::{WhileGone, while_gone},
    model::{FailurePolicy, ResourceRef, diagnostic::Location},
    resolve::{
        ResolvedWorkload,
        declared::{self, Declared},
    },
    source::files::Places,
};

/// One workload's plan, for printing.
#[derive(Serialize)]
pub struct Printed {
    pub workload: String,
    pub digest: String,
    pub cgroup: String,
    pub netns: Option<String>,
    pub sidecar: Option<String>,
    pub callers: Callers,
    pub failure_policy: FailurePolicy,
    pub rules: Vec<PrintedRule>,
    pub unix_listeners: Vec<UnixListener>,
}

#[derive(Serialize)]
pub struct PrintedRule {
    pub direction: &'static str,
    pub destination: String,
    pub path: Path,
    pub reason: Reason,
    pub targets: Vec<String>,
    /// What becomes of connections while what is to take them is gone.
    pub while_gone: Option<WhileGone>,
    pub listener: Option<String>,
    pub resource: Option<String>,
    pub field: String,
    /// `file:line` of the field.
    pub declared: Option<String>,
}

#[derive(Serialize)]
pub struct UnixListener {
    pub direction: &'static str,
    pub bind: String,
    pub targets: Vec<String>,
    pub resource: Option<String>,
    pub field: String,
    pub declared: Option<String>,
}

/// What decides, and where that was written.
pub struct Origins<'a> {
    pub workload: &'a ResolvedWorkload,
    pub mesh: Option<&'a ResourceRef>,
    pub places: &'a Places,
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

/// What is printed of a workload.
pub fn printed(workload: &WorkloadPlan, origins: &Origins<'_>) -> Printed {
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
