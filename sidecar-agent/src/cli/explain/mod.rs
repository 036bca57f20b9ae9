//! `explain`.

mod answer;
mod kernel;

use std::{
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    str::FromStr,
};

use anyhow::{Context, Result, bail};
use sidecar_common::decide::{Direction, Transport};

use self::answer::{Answer, Pool};
use super::{
    inputs::{Compiled, Inputs},
    output::{Format, print},
};
use crate::{
    explain::{self, Connection, Explanation, Who},
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
    let connection = Connection {
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
    };
    let explanation = explain::of_workload(found, node.mesh.as_ref(), &connection);
    let pool = (direction == Direction::Inbound)
        .then(|| pool(&found.workload, &explanation, address.port(), &places))
        .flatten();
    let mut answer = Answer::new(args, &found.workload, &explanation, &places, pool);
    if args.kernel.kernel {
        let asked = kernel::ask(&args.kernel, found, &explanation, &connection);
        answer.kernel = Some(asked.context("asking the kernel")?);
    }
    print(args.format, &answer, || answer.human()).context("printing the explanation")?;
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
