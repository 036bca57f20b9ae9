//! Why a connection goes where it goes. Asks the kernel's own decision function over a plan's
//! tables: what explains is what decides.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use serde::Serialize;
use sidecar_common::{
    Endpoint, Path, Reason,
    decide::{self, Caller, Decision, Direction, InboundCall, OutboundCall, Transport},
    values::PlanHeader,
};

use crate::{
    compile::{
        EVERYWHERE, Listener, MemTables, Network, NetworkInterface, Plan, Target, WorkloadPlan,
    },
    model::{
        ResourceRef,
        failure::{Action, Case},
    },
    resolve::declared,
};

/// A connection or datagram, as far as it decides anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection<'a> {
    /// Its direction, seen from the workload.
    pub direction: Direction,
    /// Its transport.
    pub transport: Transport,
    /// Where it comes from; outbound: the address its socket is bound to.
    pub src: Option<IpAddr>,
    /// Where it is going.
    pub dst: SocketAddr,
    /// Who makes it; decides outbound only.
    pub caller: Who,
    /// The interface by which it leaves, or arrives. `None`: what is known of the workload's
    /// network says so, if anything does.
    pub interface: Option<&'a str>,
}

/// Who makes an outbound connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The workload's proxy: its first uid and gid.
    Proxy,
    /// Somebody with these ids; `None`: one that no setting names.
    Ids {
        /// The user.
        uid: Option<u32>,
        /// The group.
        gid: Option<u32>,
    },
}

impl Connection<'_> {
    /// A TCP connection of an application.
    #[must_use]
    pub fn outbound(dst: SocketAddr) -> Self {
        Self {
            direction: Direction::Outbound,
            transport: Transport::Tcp,
            src: None,
            dst,
            caller: Who::Ids {
                uid: None,
                gid: None,
            },
            interface: None,
        }
    }

    /// A TCP connection to the workload. Without a source, one that is nobody's.
    #[must_use]
    pub fn inbound(src: Option<IpAddr>, dst: SocketAddr) -> Self {
        Self {
            direction: Direction::Inbound,
            src,
            ..Self::outbound(dst)
        }
    }
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
    /// What becomes of it while what is to take it is gone. None: it needs nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub while_gone: Option<WhileGone>,
}

/// What becomes of a connection while the proxy does not listen, or no target of the relay's can be
/// connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct WhileGone {
    /// The failure policy's name for it.
    pub case: &'static str,
    /// What the policy says.
    pub policy: &'static str,
    /// How it travels then. `pass`, of the relay's: the relay leads it to where it was going.
    pub path: Path,
    /// Why, if it is the kernel that decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

/// What becomes of a connection (or those of a rule) that goes by this path for this reason while
/// what is to take it is gone; `None`: it needs nobody.
#[must_use]
pub fn while_gone(
    plan: &Plan,
    direction: Direction,
    path: Path,
    reason: Reason,
) -> Option<WhileGone> {
    let (case, flag) = match path {
        Path::Proxy => (Case::ProxyGone, PlanHeader::OPEN_PROXY_GONE),
        Path::Relay => (Case::RelayTargetGone, PlanHeader::OPEN_RELAY),
        Path::Pass | Path::Direct | Path::Deny => return None,
    };
    let is_open = plan.header.flags & flag != 0;
    let (path, reason) = if case == Case::ProxyGone {
        let gone = decide::proxy_gone(&plan.header, &Decision::new(path, reason));
        (gone.path, Reason::from_number(gone.reason))
    } else if is_open && direction == Direction::Outbound {
        (Path::Pass, None)
    } else {
        (Path::Deny, None)
    };
    let policy = if is_open {
        Action::Open
    } else {
        Action::Closed
    };
    Some(WhileGone {
        case: case.name(),
        policy: policy.name(),
        path,
        reason,
    })
}

/// Explains a connection of a workload; `mesh` is the `MeshConfig`, if there is one.
#[must_use]
pub fn of_workload(
    workload: &WorkloadPlan,
    mesh: Option<&ResourceRef>,
    connection: &Connection<'_>,
) -> Explanation {
    let WorkloadPlan { workload, plan, .. } = workload;
    let explained = explain(plan, &workload.addresses, connection);
    let tables = tables(plan, &workload.addresses, connection);
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
pub fn explain(plan: &Plan, addresses: &[IpAddr], connection: &Connection<'_>) -> Explanation {
    let tables = tables(plan, addresses, connection);
    let decision = decide(plan, &tables, connection);
    let path = decision.path;
    let reason = Reason::from_number(decision.reason).unwrap_or(Reason::PlanIncomplete);
    let listener = plan.listener(decision.listener);
    let targets = match path {
        Path::Pass => vec![Target::Original],
        Path::Direct => backends(plan, &tables, connection),
        Path::Relay => listener.map(|l| l.targets.to_vec()).unwrap_or_default(),
        Path::Proxy => vec![Target::Tcp(proxy(plan, connection, &decision))],
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
        while_gone: while_gone(plan, connection.direction, path, reason),
    }
}

/// An id that no plan names: the largest that there is.
pub const SOMEBODY: u32 = PlanHeader::NOBODY - 1;

/// The index of the one interface of which the connection tells.
const INTERFACE: u32 = 2;

/// The tables of a plan, where the connection tells by which interface it goes.
fn tables<'a>(plan: &'a Plan, addresses: &[IpAddr], connection: &Connection<'_>) -> MemTables<'a> {
    let tables = MemTables::new(plan, addresses);
    let Some(name) = connection.interface else {
        return tables;
    };
    tables.with_network(Network(vec![NetworkInterface {
        index: INTERFACE,
        name: name.to_owned(),
        addresses: Vec::new(),
        routes: EVERYWHERE.to_vec(),
    }]))
}

/// Decides a connection as the kernel does. What its interface's name means, the tables know.
#[must_use]
pub fn decide(plan: &Plan, tables: &MemTables<'_>, connection: &Connection<'_>) -> Decision {
    let dst = connection.dst.into();
    // Without a source, one that is nobody's.
    let src = connection
        .src
        .unwrap_or_else(|| unspecified(connection.dst.ip()));
    let header = &plan.header;
    // Datagrams are looked at only where they leave, and may be DNS that is captured.
    if connection.transport == Transport::Udp
        && (connection.direction == Direction::Inbound
            || !decide::concerns_datagrams(header, connection.dst.port()))
    {
        return Decision::new(Path::Pass, Reason::NotIncluded);
    }
    match connection.direction {
        Direction::Outbound => {
            let (uid, gid) = match connection.caller {
                Who::Proxy => (header.proxy_uid, header.proxy_gid),
                Who::Ids { uid, gid } => (uid.unwrap_or(SOMEBODY), gid.unwrap_or(SOMEBODY)),
            };
            let call = OutboundCall {
                dst,
                src: src.into(),
                transport: connection.transport,
                caller: Caller {
                    uid,
                    gid,
                    in_proxy_cgroup: matches!(connection.caller, Who::Proxy),
                },
                bound_device: false,
            };
            decide::outbound(tables, 0, header, &call)
        }
        Direction::Inbound => {
            let call = InboundCall {
                src: Endpoint::new(src.into(), 0),
                dst,
                interface: connection
                    .interface
                    .and_then(|name| tables.network().index(name))
                    .unwrap_or(0),
            };
            decide::inbound(tables, 0, header, &call)
        }
    }
}

/// Every target the decision may choose.
fn backends(plan: &Plan, tables: &MemTables<'_>, connection: &Connection<'_>) -> Vec<Target> {
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

/// The proxy's listener that gets it.
fn proxy(plan: &Plan, connection: &Connection<'_>, decision: &Decision) -> SocketAddr {
    let port = match decision.proxy_port {
        // Where it was going, its own inbound listener takes it.
        0 => plan.header.inbound_port,
        port => port,
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
