//! What becomes of an outbound connection.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use sidecar_agent::model::{Snapshot, mesh::InterceptionMode, sidecar::OutboundTrafficPolicy};
use sidecar_common::{Path, Reason};

use super::{
    Call, Expected, ORIGINAL, Workload,
    inbound::ports,
    iptables,
    listeners::{Listener, Member, listeners},
    outcome,
    services::{Endpoint, Finding, Port, Protocol, Service},
    visibility::{egress, scope},
};
use crate::subject::Outcome;

pub fn outbound(
    snapshot: &Snapshot,
    services: &[Service],
    workload: &Workload<'_>,
    call: &Call<'_>,
) -> Expected {
    let ip = match call.dst.ip().to_canonical() {
        // To call nobody in particular is to call oneself.
        ip if ip.is_unspecified() && ip.is_ipv4() => Ipv4Addr::LOCALHOST.into(),
        ip if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let dst = SocketAddr::new(ip, call.dst.port());
    // A socket bound to a wildcard address is bound to none.
    let src = call.src.filter(|src| !src.to_canonical().is_unspecified());
    let call = &Call { dst, src, ..*call };
    let listeners = listeners(snapshot, services, workload);
    let at = |listener: &&Listener<'_>| listener.port == dst.port();
    // Real listeners are called at their address; one on the wildcard at any of the workload's.
    let its_own = |ip| is_the_loopback(workload, ip) || workload.addresses.contains(&ip);
    let real = listeners
        .iter()
        .filter(at)
        .filter(|listener| listener.real)
        .find(|listener| {
            listener.at == Some(dst.ip()) || (listener.at.is_none() && its_own(dst.ip()))
        });
    let none = workload.mode() == InterceptionMode::None;
    if workload.external_proxy && !none {
        let from_elsewhere = || ports(snapshot, services, workload, dst);
        let mesh = &snapshot.mesh;
        return iptables::outbound(mesh, workload, call, real.is_some(), from_elsewhere);
    }
    if call.udp {
        return outcome(Path::Pass, Reason::NotIncluded).into();
    }
    if let Some(listener) = real {
        return if workload.external_proxy {
            let mut outcome = outcome(Path::Pass, Reason::NoneListener);
            outcome.service = Some(listener.members[0].service.host.clone());
            outcome
        } else {
            called(listener, dst, Reason::EgressListener)
        }
        .into();
    }
    if none {
        return outcome(Path::Pass, Reason::InterceptionNone).into();
    }
    let settings = &workload.traffic;
    let lists = settings.outbound(dst.ip(), dst.port(), &workload.addresses);
    let over_lo = dst.ip().is_loopback() || workload.addresses.contains(&dst.ip());
    let interface = if over_lo { Some("lo") } else { call.interface };
    let mut also: Vec<Reason> = lists.err().into_iter().collect();
    if interface.is_some_and(|name| settings.excludes_interface(name)) {
        also.push(Reason::ExcludedInterface);
    }
    if !settings.captures_group(call.gid) {
        also.push(Reason::OwnerGroup);
    }
    if let Some(reason) = also.first() {
        return Expected {
            outcome: outcome(Path::Pass, *reason),
            also,
        };
    }
    let captured = || {
        listeners
            .iter()
            .filter(at)
            .filter(|listener| !listener.real)
    };
    // Single addresses come before networks, and first come, first served.
    let exact = captured().find_map(|listener| match listener.at {
        Some(ip) if ip == dst.ip() => Some(called(listener, dst, Reason::EgressService)),
        Some(_) => None,
        None => listener
            .members
            .iter()
            .find_map(|member| at_address(listener, member, dst)),
    });
    let found = exact.or_else(|| captured().find_map(|listener| within(listener, dst)));
    found
        .unwrap_or_else(|| unknown(snapshot, services, workload, dst))
        .into()
}

/// The loopback addresses of the families that the workload has.
fn is_the_loopback(workload: &Workload<'_>, ip: IpAddr) -> bool {
    (workload.is_v4() && ip == IpAddr::from(Ipv4Addr::LOCALHOST))
        || (workload.is_v6() && ip == IpAddr::from(Ipv6Addr::LOCALHOST))
}

/// A listener with an address of its own: the first of its services has it.
fn called(listener: &Listener<'_>, dst: SocketAddr, reason: Reason) -> Outcome {
    let first = &listener.members[0];
    let others = listener
        .members
        .iter()
        .any(|m| m.service.host != first.service.host);
    if listener.given {
        // Only Host could choose.
        if first.protocol == Protocol::HttpProxy || (first.protocol == Protocol::Http && others) {
            return Outcome {
                service: Some(first.service.host.clone()),
                ..outcome(Path::Deny, Reason::NeedsProxy)
            };
        }
        lead(first, dst, reason, &elsewhere(first.service, first.port))
    } else if first.service.networks.is_empty() {
        keeps(first, reason)
    } else {
        own(first, dst, reason)
    }
}

/// A service of the listener at every address that is known by this very address.
fn at_address(listener: &Listener<'_>, member: &Member<'_>, dst: SocketAddr) -> Option<Outcome> {
    let reason = Reason::EgressService;
    match member.protocol {
        Protocol::HttpProxy => return None,
        Protocol::Http if !member.service.networks.is_empty() => {
            let its = member.service.singles().contains(&dst.ip());
            return its.then(|| own(member, dst, reason));
        }
        _ if member.network.is_some() => return None,
        _ => {}
    }
    let there = member
        .port
        .endpoints
        .iter()
        .find(|endpoint| matches!(endpoint, Endpoint::Tcp(at) if at.ip() == dst.ip()))?;
    let stays = keeps_destination(member.service, member.port)
        || matches!(there, Endpoint::Tcp(at) if at.port() == listener.port);
    Some(if stays {
        keeps(member, reason)
    } else {
        lead(member, dst, reason, &[there.clone()].into())
    })
}

/// A service of the listener at every address in whose network the destination is: the longest.
fn within(listener: &Listener<'_>, dst: SocketAddr) -> Option<Outcome> {
    if listener.at.is_some() {
        return None;
    }
    let mut best: Option<(u8, &Member<'_>)> = None;
    for member in &listener.members {
        let networks = match (member.network, member.protocol) {
            (Some(network), _) => vec![network],
            (None, Protocol::Http) => member.service.ranges(),
            (None, Protocol::HttpProxy | Protocol::Tls) => Vec::new(),
            // It has the port for every destination.
            (None, _) => EVERYWHERE
                .map(|net| net.parse().expect("a network"))
                .to_vec(),
        };
        for network in networks
            .iter()
            .filter(|network| network.contains(&dst.ip()))
        {
            if best.is_none_or(|(length, _)| network.prefix_len() > length) {
                best = Some((network.prefix_len(), member));
            }
        }
    }
    best.map(|(_, member)| own(member, dst, Reason::EgressService))
}

const EVERYWHERE: [&str; 2] = ["0.0.0.0/0", "::/0"];

/// A call to one of the service's own addresses.
fn own(member: &Member<'_>, dst: SocketAddr, reason: Reason) -> Outcome {
    let Member { service, port, .. } = member;
    if keeps_destination(service, port) {
        return keeps(member, reason);
    }
    lead(member, dst, reason, &port.endpoints)
}

/// The endpoints of a Kubernetes service that nobody told us are the cluster's business.
fn keeps_destination(service: &Service, port: &Port) -> bool {
    let cluster = service.kubernetes && !service.alias && port.endpoints.is_empty();
    service.finding == Finding::NotAtAll || cluster
}

/// Where a connection leads that was not made to an address of the service.
fn elsewhere(service: &Service, port: &Port) -> BTreeSet<Endpoint> {
    if !port.endpoints.is_empty() || !keeps_destination(service, port) {
        return port.endpoints.clone();
    }
    let at = |ip| Endpoint::Tcp(SocketAddr::new(ip, port.number));
    service.singles().into_iter().map(at).collect()
}

fn keeps(member: &Member<'_>, reason: Reason) -> Outcome {
    Outcome {
        path: Path::Direct,
        reason,
        service: Some(member.service.host.clone()),
        targets: [ORIGINAL.to_owned()].into(),
    }
}

fn lead(
    member: &Member<'_>,
    dst: SocketAddr,
    reason: Reason,
    targets: &BTreeSet<Endpoint>,
) -> Outcome {
    let service = Some(member.service.host.clone());
    let reachable: BTreeSet<String> = targets
        .iter()
        .filter_map(|target| match target {
            Endpoint::Tcp(at) if at.is_ipv4() == dst.is_ipv4() => Some(at.to_string()),
            _ => None,
        })
        .collect();
    if !reachable.is_empty() {
        return Outcome {
            path: Path::Direct,
            reason,
            service,
            targets: reachable,
        };
    }
    if targets.is_empty() {
        return Outcome {
            service,
            ..outcome(Path::Deny, Reason::NoEndpoint)
        };
    }
    let name = |target: &Endpoint| match target {
        Endpoint::Tcp(at) => at.to_string(),
        Endpoint::Unix(path) => path.clone(),
    };
    Outcome {
        path: Path::Relay,
        reason,
        service,
        targets: targets.iter().map(name).collect(),
    }
}

/// A destination that no listener serves.
fn unknown(
    snapshot: &Snapshot,
    services: &[Service],
    workload: &Workload<'_>,
    dst: SocketAddr,
) -> Outcome {
    if workload.policy(snapshot) == OutboundTrafficPolicy::RegistryOnly {
        return outcome(Path::Deny, Reason::RegistryOnly);
    }
    let proxy = workload
        .sidecar
        .and_then(|sidecar| sidecar.spec.egress_proxy.as_ref());
    let Some(proxy) = proxy else {
        return outcome(Path::Pass, Reason::AllowAny);
    };
    let scope = scope(
        snapshot,
        services,
        workload.namespace(),
        &egress(workload.sidecar),
    );
    let found = scope
        .iter()
        .find(|exposed| exposed.service.host == proxy.host);
    let port = found.and_then(|e| e.ports.iter().find(|port| port.number == proxy.port));
    let (Some(found), Some(port)) = (found, port) else {
        // Istio has no cluster for it either.
        return Outcome {
            service: Some(proxy.host.clone()),
            ..outcome(Path::Deny, Reason::NeedsProxy)
        };
    };
    let member = Member {
        service: found.service,
        port,
        protocol: port.protocol,
        network: None,
    };
    lead(
        &member,
        dst,
        Reason::EgressProxy,
        &elsewhere(found.service, port),
    )
}
