//! Why a connection goes where it goes. Asks the kernel's own decision function over a plan's
//! tables: what explains is what decides.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use serde::Serialize;
use sidecar_common::{
    Path, Reason,
    decide::{self, Decision, Direction},
};

use crate::{
    compile::{Listener, MemTables, Plan, Target, WorkloadPlan},
    model::ResourceRef,
    resolve::declared,
};

/// A connection, as far as it decides anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Its direction, seen from the workload.
    pub direction: Direction,
    /// Where it comes from; decides inbound only.
    pub src: Option<IpAddr>,
    /// Where it is going.
    pub dst: SocketAddr,
    /// The workload's proxy makes it; decides outbound only.
    pub from_proxy: bool,
}

/// What happens to a connection, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// How it travels.
    pub path: Path,
    /// Why.
    pub reason: Reason,
    /// Why, in a sentence.
    pub reason_text: &'static str,
    /// The listener that takes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener: Option<String>,
    /// The service it reaches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Where it ends up; one of these, if there are several. None: it is refused.
    pub targets: Vec<Target>,
    /// The resource that says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<ResourceRef>,
    /// The field of it that does; empty: the resource as a whole.
    pub field: String,
}

/// Explains a connection of a workload; `mesh` is the `MeshConfig`, if there is one.
#[must_use]
pub fn of_workload(
    workload: &WorkloadPlan,
    mesh: Option<&ResourceRef>,
    connection: &Connection,
) -> Explanation {
    let WorkloadPlan { workload, plan, .. } = workload;
    let explained = explain(plan, &workload.addresses, connection);
    let tables = MemTables::new(plan, &workload.addresses);
    let listener = plan.listener(decide(plan, &tables, connection).listener);
    let declared = declared::declared(
        workload,
        mesh,
        connection.direction,
        explained.reason,
        listener,
        connection.dst.port(),
    );
    let (resource, field) = declared.map_or((None, String::new()), |declared| {
        (Some(declared.resource), declared.field)
    });
    Explanation {
        resource,
        field,
        ..explained
    }
}

/// Explains a connection of a workload with this plan and these addresses.
#[must_use]
pub fn explain(plan: &Plan, addresses: &[IpAddr], connection: &Connection) -> Explanation {
    let tables = MemTables::new(plan, addresses);
    let decision = decide(plan, &tables, connection);
    let path = decision.path;
    let reason = Reason::from_number(decision.reason).unwrap_or(Reason::PlanIncomplete);
    let listener = plan.listener(decision.listener);
    let targets = match path {
        Path::Pass => vec![Target::Original],
        Path::Direct => backends(plan, &tables, connection),
        Path::Relay => listener.map(|l| l.targets.to_vec()).unwrap_or_default(),
        Path::Proxy => vec![Target::Tcp(proxy(plan, connection))],
        Path::Deny => Vec::new(),
    };
    Explanation {
        path,
        reason,
        reason_text: reason.description().trim(),
        listener: listener.map(ToString::to_string),
        service: listener.and_then(|l| l.service.as_deref().map(str::to_owned)),
        targets,
        resource: listener.and_then(|l| plan.resource(l).cloned()),
        field: listener.map(Listener::field).unwrap_or_default(),
    }
}

/// Decides a connection as the kernel does.
#[must_use]
pub fn decide(plan: &Plan, tables: &MemTables<'_>, connection: &Connection) -> Decision {
    let dst = connection.dst.into();
    match connection.direction {
        Direction::Outbound => {
            decide::outbound(tables, 0, &plan.header, &dst, connection.from_proxy)
        }
        Direction::Inbound => {
            // Without a source, one that is nobody's.
            let src = connection
                .src
                .unwrap_or_else(|| unspecified(connection.dst.ip()));
            decide::inbound(tables, 0, &plan.header, &src.into(), &dst)
        }
    }
}

/// Every target the decision may choose.
fn backends(plan: &Plan, tables: &MemTables<'_>, connection: &Connection) -> Vec<Target> {
    let largest = plan
        .outbound
        .backends
        .iter()
        .map(Vec::len)
        .max()
        .unwrap_or(1);
    let targets: BTreeSet<Target> = (0..u32::try_from(largest).unwrap_or(u32::MAX))
        .map(|choice| {
            tables.choose(choice);
            match SocketAddr::from(decide(plan, tables, connection).target) {
                target if target.port() == 0 => Target::Original,
                target => Target::Tcp(target),
            }
        })
        .collect();
    targets.into_iter().collect()
}

fn proxy(plan: &Plan, connection: &Connection) -> SocketAddr {
    let port = match connection.direction {
        Direction::Outbound => plan.header.outbound_port,
        Direction::Inbound => plan.header.inbound_port,
    };
    let loopback: IpAddr = match connection.dst.ip().to_canonical() {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(loopback, port)
}

fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}
