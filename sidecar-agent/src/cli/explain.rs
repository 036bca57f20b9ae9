//! `explain`.

use std::{
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    str::FromStr,
};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use sidecar_common::decide::{Direction, Transport};

use super::{
    inputs::{Compiled, Inputs},
    kernel,
    output::{Format, print},
    render::printable,
};
use crate::{
    dataplane::compare::Followed,
    explain::{self, Connection, Explanation, WhileGone, Who},
    model::{FailurePolicy, ResourceRef, diagnostic::Location},
    resolve::{ResolvedWorkload, pool},
    source::files::Places,
};

/// Arguments of `explain`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    inputs: Inputs,
    /// The workload, as `namespace/name`.
    workload: String,
    /// `ip:port` it connects to, or `inbound:ip:port` it is called at.
    #[arg(value_name = "DEST")]
    destination: Destination,
    /// Where an inbound connection comes from, or the address an outbound one is bound to.
    #[arg(long, value_name = "IP")]
    from: Option<IpAddr>,
    /// The proxy of the workload makes the outbound connection.
    #[arg(long, conflicts_with_all = ["uid", "gid"])]
    from_proxy: bool,
    /// The user who makes the outbound connection; one that is not the proxy's if absent.
    #[arg(long)]
    uid: Option<u32>,
    /// The group as which the outbound connection is made; one that no setting names if absent.
    #[arg(long)]
    gid: Option<u32>,
    /// It is no TCP connection, but a datagram.
    #[arg(long)]
    udp: bool,
    /// The interface by which it leaves, or arrives.
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    #[command(flatten)]
    kernel: kernel::KernelArgs,
    #[command(flatten)]
    format: Format,
}

#[derive(Clone, Copy, Debug)]
struct Destination {
    direction: Direction,
    address: SocketAddr,
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (direction, address) = match text.strip_prefix("inbound:") {
            Some(address) => (Direction::Inbound, address),
            None => (
                Direction::Outbound,
                text.strip_prefix("outbound:").unwrap_or(text),
            ),
        };
        let address = address
            .parse()
            .map_err(|_| format!("`{address}` is not `ip:port` (for IPv6: `[ip]:port`)"))?;
        Ok(Self { direction, address })
    }
}

/// What is printed for programs.
#[derive(Serialize)]
struct Answer<'a> {
    workload: &'a str,
    direction: &'static str,
    destination: SocketAddr,
    path: String,
    reason: String,
    explanation: &'a str,
    listener: Option<&'a str>,
    service: Option<&'a str>,
    target: Option<String>,
    targets: Vec<String>,
    resource: Option<&'a ResourceRef>,
    field: &'a str,
    location: Option<Location>,
    connection_pool: Option<Pool<'a>>,
    failure_policy: FailurePolicy,
    while_gone: Option<WhileGone>,
    /// With `--kernel`.
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel: Option<kernel::Answer>,
}

/// The connection pool settings that the proxy is left to honour.
#[derive(Serialize)]
struct Pool<'a> {
    resource: ResourceRef,
    field: &'a str,
    location: Option<Location>,
}

/// Explains one connection.
pub fn run(args: &Args) -> Result<ExitCode> {
    let Compiled { node, places } = args.inputs.compile()?;
    let known = || {
        node.workloads
            .iter()
            .map(|known| known.workload.to_string())
            .collect::<Vec<_>>()
            .join(", ")
    };
    let Some(found) = node
        .workloads
        .iter()
        .find(|known| known.workload.to_string() == args.workload)
    else {
        let known = known();
        if known.is_empty() {
            bail!(
                "no workload of this node is known; a WorkloadEntry is one if it has the \
                 annotation {}",
                crate::model::workload::CGROUP_ANNOTATION
            );
        }
        bail!("workload `{}` is not known; known: {known}", args.workload);
    };
    let Destination { direction, address } = args.destination;
    let explanation = explain::of_workload(
        found,
        node.mesh.as_ref(),
        &Connection {
            direction,
            transport: if args.udp {
                Transport::Udp
            } else {
                Transport::Tcp
            },
            src: args.from,
            dst: address,
            caller: if args.from_proxy {
                Who::Proxy
            } else {
                Who::Ids {
                    uid: args.uid,
                    gid: args.gid,
                }
            },
            interface: args.interface.as_deref(),
        },
    );
    let pool = (direction == Direction::Inbound)
        .then(|| pool(&found.workload, &explanation, address.port(), &places))
        .flatten();
    let mut answer = answer(args, &found.workload, &explanation, &places, pool);
    if args.kernel.kernel {
        if direction == Direction::Inbound {
            bail!("--kernel asks about outbound connections only");
        }
        let ids = (args.uid, args.gid);
        let asked = kernel::ask(&args.kernel, found, &explanation, address, ids);
        answer.kernel = Some(asked.context("asking the kernel")?);
    }
    print(args.format, &answer, || human(&answer)).context("printing the explanation")?;
    Ok(match &answer.kernel {
        Some(kernel) if !kernel.agrees => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    })
}

/// The settings for connections to a port that has a listener; others get none.
fn pool<'a>(
    workload: &'a ResolvedWorkload,
    explanation: &Explanation,
    port: u16,
    places: &Places,
) -> Option<Pool<'a>> {
    let sidecar = workload.sidecar.as_ref()?;
    let mut declared = sidecar.spec.ingress.iter();
    if explanation.listener.is_none()
        && !declared.any(|ingress| ingress.port.number == u32::from(port))
    {
        return None;
    }
    let field = pool::inbound(&sidecar.spec, port)?;
    let resource = sidecar.reference("Sidecar");
    Some(Pool {
        location: places.locate(&resource, field),
        resource,
        field,
    })
}

fn answer<'a>(
    args: &'a Args,
    workload: &ResolvedWorkload,
    explanation: &'a Explanation,
    places: &Places,
    connection_pool: Option<Pool<'a>>,
) -> Answer<'a> {
    let Destination { direction, address } = args.destination;
    let targets: Vec<String> = explanation
        .targets
        .iter()
        .map(ToString::to_string)
        .collect();
    Answer {
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

fn human(answer: &Answer<'_>) -> String {
    let mut lines = vec![
        format!(
            "{} {} {}",
            answer.workload, answer.direction, answer.destination
        ),
        format!("  path      {}", answer.path),
        format!("  reason    {}: {}", answer.reason, answer.explanation),
    ];
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            lines.push(format!("  {name:<9} {value}"));
        }
    };
    line("listener", answer.listener.map(ToOwned::to_owned));
    line("service", answer.service.map(ToOwned::to_owned));
    line(
        "target",
        (!answer.targets.is_empty()).then(|| answer.targets.join(", ")),
    );
    let declared = answer
        .resource
        .map(|resource| written(resource, answer.field, answer.location.as_ref()));
    line(
        "declared",
        declared.or_else(|| Some("by no resource: built in".into())),
    );
    let pool = answer.connection_pool.as_ref().map(|pool| {
        let written = written(&pool.resource, pool.field, pool.location.as_ref());
        format!("left to the proxy: {written}")
    });
    line("pool", pool);
    let gone = answer.while_gone.map(|gone| {
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
    line("policy", Some(answer.failure_policy.to_string()));
    if let Some(kernel) = &answer.kernel {
        let verdict = if kernel.agrees { "agrees" } else { "DIFFERS" };
        let decided = kernel.decided.as_ref().map_or_else(
            || "nothing decided".to_owned(),
            |decided| format!("{}, {}", decided.path, decided.reason),
        );
        let target = kernel.target.map(|target| format!(", led to {target}"));
        let Followed { slot, set, plan } = kernel.followed;
        line(
            "kernel",
            Some(format!(
                "{verdict}: {decided}{} (workload {slot}, plan {plan} of set {set})",
                target.unwrap_or_default()
            )),
        );
        for difference in &kernel.differences {
            line("differs", Some(printable(difference)));
        }
    }
    lines.join("\n")
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
