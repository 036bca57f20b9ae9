//! What `explain` prints.

use std::net::SocketAddr;

use serde::Serialize;

use super::{Args, Destination, kernel};
use crate::{
    cli::render::printable,
    explain::{Explanation, WhileGone},
    model::{FailurePolicy, ResourceRef, diagnostic::Location},
    resolve::ResolvedWorkload,
    source::files::Places,
};

/// What is printed for programs.
#[derive(Serialize)]
pub(super) struct Answer<'a> {
    pub(super) workload: &'a str,
    pub(super) direction: &'static str,
    pub(super) destination: SocketAddr,
    pub(super) path: String,
    pub(super) reason: String,
    pub(super) explanation: &'a str,
    pub(super) listener: Option<&'a str>,
    pub(super) service: Option<&'a str>,
    pub(super) target: Option<String>,
    pub(super) targets: Vec<String>,
    pub(super) resource: Option<&'a ResourceRef>,
    pub(super) field: &'a str,
    pub(super) location: Option<Location>,
    pub(super) connection_pool: Option<Pool<'a>>,
    pub(super) failure_policy: FailurePolicy,
    pub(super) while_gone: Option<WhileGone>,
    /// With `--kernel`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) kernel: Option<kernel::Answer>,
}

/// The connection pool settings that the proxy is left to honour.
#[derive(Serialize)]
pub(super) struct Pool<'a> {
    pub(super) resource: ResourceRef,
    pub(super) field: &'a str,
    pub(super) location: Option<Location>,
}

impl<'a> Answer<'a> {
    /// Puts together what is said of a connection.
    pub(super) fn new(
        args: &'a Args,
        workload: &ResolvedWorkload,
        explanation: &'a Explanation,
        places: &Places,
        connection_pool: Option<Pool<'a>>,
    ) -> Self {
        let Destination { direction, address } = args.destination;
        let targets: Vec<String> = explanation
            .targets
            .iter()
            .map(ToString::to_string)
            .collect();
        Self {
            workload: &args.workload,
            direction: direction.name(),
            destination: address,
            path: explanation.path.to_string(),
            reason: explanation.reason.to_string(),
            explanation: explanation.reason_text,
            listener: explanation.listener.as_deref(),
            service: explanation.service.as_deref(),
            target: targets.first().cloned(),
            targets,
            resource: explanation.resource.as_ref(),
            field: &explanation.field,
            location: explanation
                .resource
                .as_ref()
                .and_then(|resource| places.locate(resource, &explanation.field)),
            connection_pool,
            failure_policy: workload.failure,
            while_gone: explanation.while_gone,
            kernel: None,
        }
    }

    /// The same for people.
    pub(super) fn human(&self) -> String {
        let mut lines = vec![
            format!("{} {} {}", self.workload, self.direction, self.destination),
            format!("  path      {}", self.path),
            format!("  reason    {}: {}", self.reason, self.explanation),
        ];
        let mut line = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                lines.push(format!("  {name:<9} {value}"));
            }
        };
        line("listener", self.listener.map(ToOwned::to_owned));
        line("service", self.service.map(ToOwned::to_owned));
        line(
            "target",
            (!self.targets.is_empty()).then(|| self.targets.join(", ")),
        );
        let declared = self
            .resource
            .map(|resource| written(resource, self.field, self.location.as_ref()));
        line(
            "declared",
            declared.or_else(|| Some("by no resource: built in".into())),
        );
        let pool = self.connection_pool.as_ref().map(|pool| {
            let written = written(&pool.resource, pool.field, pool.location.as_ref());
            format!("left to the proxy: {written}")
        });
        line("pool", pool);
        let gone = self.while_gone.map(|gone| {
            let WhileGone {
                case,
                policy,
                path,
                reason,
            } = gone;
            let reason = reason.map(|reason| format!(", {reason}"));
            format!("{path}{} ({case}={policy})", reason.unwrap_or_default())
        });
        line("if gone", gone);
        line("policy", Some(self.failure_policy.to_string()));
        if let Some(kernel) = &self.kernel {
            for (name, text) in kernel.lines() {
                line(name, Some(printable(&text)));
            }
        }
        lines.join("\n")
    }
}

/// A resource and a field of it, and where they were written.
fn written(resource: &ResourceRef, field: &str, location: Option<&Location>) -> String {
    let ResourceRef {
        kind,
        namespace,
        name,
        file,
        line,
    } = resource;
    let at = match location {
        Some(Location {
            file, line, column, ..
        }) => format!("{file}:{line}:{column}"),
        None => format!("{file}:{line}"),
    };
    let name = [namespace.as_str(), name].join("/");
    // A MeshConfig has no name.
    let name = name.trim_matches('/');
    [*kind, name, field, &*format!("({at})")]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}
