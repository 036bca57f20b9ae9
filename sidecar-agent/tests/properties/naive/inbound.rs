//! What becomes of an inbound connection.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use sidecar_agent::model::{
    Snapshot,
    mesh::InterceptionMode,
    service::TargetPort,
    sidecar::{CaptureMode, IngressListener},
};
use sidecar_common::{Path, Reason};

use super::{
    Expected, ORIGINAL, Workload, iptables, outcome,
    services::{Port, Protocol, Service, protocol},
};
use crate::subject::Outcome;

pub fn inbound(
    snapshot: &Snapshot,
    services: &[Service],
    workload: &Workload<'_>,
    src: IpAddr,
    dst: SocketAddr,
    interface: Option<&str>,
) -> Expected {
    let src = src.to_canonical();
    let dst = SocketAddr::new(dst.ip().to_canonical(), dst.port());
    let from_itself = src == dst.ip()
        || src.is_loopback()
        || workload.addresses.contains(&src)
        || iptables::is_passthrough(src);
    // What the workload sends to itself arrives by the loopback interface.
    let interface = interface.filter(|_| !from_itself);
    let captures = workload.mode() != InterceptionMode::None;
    let mut passes = Vec::new();
    if workload.external_proxy && captures {
        match iptables::prerouting(&snapshot.mesh, workload, interface, dst) {
            Some(decided) if decided.reason == Reason::VirtualInterface => return decided.into(),
            Some(decided) => passes.push(decided.reason),
            None => {}
        }
    }
    if captures && interface.is_some_and(|name| workload.traffic.excludes_interface(name)) {
        passes.push(Reason::ExcludedInterface);
    }
    let found = ports(snapshot, services, workload, dst);
    if is_really_there(workload, dst) {
        return found.into();
    }
    // Also what would lead where it was going anyway is the application's own.
    let is_captured = found.path != Path::Pass || found.reason == Reason::IngressListener;
    if from_itself && is_captured {
        passes.push(Reason::SelfCall);
    }
    match passes.first() {
        Some(reason) => {
            let outcome = outcome(Path::Pass, *reason);
            if found.path == Path::Pass {
                passes.push(found.reason);
            }
            Expected {
                outcome,
                also: passes,
            }
        }
        // Of a declared port that is excluded both may be said.
        None if from_itself && found.reason == Reason::ExcludedPort => Expected {
            also: vec![Reason::ExcludedPort, Reason::SelfCall],
            outcome: found,
        },
        None => found.into(),
    }
}

/// Whether a real listener is there.
fn is_really_there(workload: &Workload<'_>, dst: SocketAddr) -> bool {
    let none = workload.mode() == InterceptionMode::None;
    listener_at(workload, dst.port()).is_some_and(|listener| {
        is_real(listener, none) && is_bound_at(workload, listener, dst.ip())
    })
}

/// The listener that the Sidecar declares for a port.
fn listener_at<'a>(workload: &Workload<'a>, port: u16) -> Option<&'a IngressListener> {
    workload
        .sidecar
        .into_iter()
        .flat_map(|sidecar| &sidecar.spec.ingress)
        .find(|listener| listener.port.number == u32::from(port))
        .filter(|listener| exists(listener))
}

/// What becomes of a connection that somebody else makes.
pub fn ports(
    snapshot: &Snapshot,
    services: &[Service],
    workload: &Workload<'_>,
    dst: SocketAddr,
) -> Outcome {
    let none = workload.mode() == InterceptionMode::None;
    let declared = listener_at(workload, dst.port());

    if let Some(listener) = declared
        && is_real(listener, none)
        && is_bound_at(workload, listener, dst.ip())
    {
        return if workload.external_proxy {
            outcome(Path::Pass, Reason::NoneListener)
        } else {
            forward(workload, &listener.default_endpoint, dst)
        };
    }
    if none {
        return outcome(Path::Pass, Reason::InterceptionNone);
    }
    let captured = declared
        .filter(|listener| !is_real(listener, none))
        .filter(|_| is_captured_at(workload, dst.ip()));
    let lists = match workload.traffic.inbound(dst.port()) {
        // A declared port counts as included, but not as the tunnel's.
        Err(Reason::NotIncluded)
            if workload.traffic.is_tunnel(dst.port()) && captured.is_some() =>
        {
            Err(Reason::ExcludedPort)
        }
        lists => lists,
    };

    if workload.external_proxy {
        let reason = match (lists, captured) {
            // The host's namespace is not captured whole, and no other's addresses.
            _ if !is_captured_at(workload, dst.ip()) => {
                return outcome(Path::Pass, Reason::NotIncluded);
            }
            (Ok(Reason::CaptureAll) | Err(Reason::ExcludedPort), None)
                if !workload.own_netns && workload.traffic.include_inbound.is_none() =>
            {
                return outcome(Path::Pass, Reason::NotIncluded);
            }
            // A declared port counts as included.
            (Ok(_) | Err(Reason::NotIncluded), Some(_)) => Reason::IngressListener,
            (Err(exempt), _) => return outcome(Path::Pass, exempt),
            (Ok(captured), None) => captured,
        };
        return iptables::redirected(dst, snapshot.mesh.proxy_inbound_listen_port, reason);
    }
    let no_ingress = workload
        .sidecar
        .is_none_or(|sidecar| sidecar.spec.ingress.is_empty());
    let derived = targeted(services, workload, dst.port()).filter(|_| {
        no_ingress && snapshot.mesh.inbound_localhost && is_captured_at(workload, dst.ip())
    });
    let endpoint = match (captured, derived) {
        (Some(listener), _) => listener.default_endpoint.clone(),
        (None, Some(_)) => String::new(),
        (None, None) => return outcome(Path::Pass, Reason::UndeclaredPort),
    };
    let is_tunnel = workload.traffic.is_tunnel(dst.port());
    let found = if lists == Err(Reason::ExcludedPort) || is_tunnel {
        outcome(Path::Pass, Reason::ExcludedPort)
    } else {
        // A declared port counts as included.
        match derived {
            Some(_) => to(SocketAddr::new(loopback(workload.is_v4()), dst.port()), dst),
            None => forward(workload, &endpoint, dst),
        }
    };
    Outcome {
        service: derived.map(|service| service.host.clone()),
        ..found
    }
}

/// The oldest service that selects the workload and whose connections arrive at this port.
fn targeted<'a>(
    services: &'a [Service],
    workload: &Workload<'_>,
    number: u16,
) -> Option<&'a Service> {
    let mut selecting = services.iter().filter(|service| {
        let has = |(key, value): (&String, &String)| workload.labels.get(key) == Some(value);
        service.namespace == workload.namespace()
            && !service.selector.is_empty()
            && service.selector.iter().all(has)
    });
    let arrives = |port: &Port| {
        port.protocol != Protocol::Udp
            && match &port.target {
                TargetPort::Number(target) => *target == number,
                TargetPort::Name(name) => workload.entry.spec.ports.get(name) == Some(&number),
            }
    };
    selecting.find(|service| service.ports.iter().any(arrives))
}

/// In the host's network namespace only what is the workload's own; else every local address, of
/// the families that it has.
fn is_captured_at(workload: &Workload<'_>, ip: IpAddr) -> bool {
    if !workload.own_netns {
        return workload.addresses.contains(&ip);
    }
    workload.external_proxy
        || if ip.is_ipv4() {
            workload.is_v4()
        } else {
            workload.is_v6()
        }
}

/// Not on the wildcard at a port of the proxy's own.
fn exists(listener: &IngressListener) -> bool {
    let on_wildcard = match listener.bind.parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical().is_unspecified(),
        Err(_) => protocol(&listener.port.protocol) == Protocol::Http,
    };
    !(on_wildcard && [15021, 15090].contains(&listener.port.number))
}

fn is_real(listener: &IngressListener, none: bool) -> bool {
    match listener.capture_mode {
        CaptureMode::Default => none,
        CaptureMode::Iptables => false,
        CaptureMode::None => true,
    }
}

fn is_bound_at(workload: &Workload<'_>, listener: &IngressListener, ip: IpAddr) -> bool {
    let covers =
        |bind: IpAddr| bind == ip || (bind.is_unspecified() && bind.is_ipv4() == ip.is_ipv4());
    if let Ok(bind) = listener.bind.parse::<IpAddr>() {
        return covers(bind.to_canonical());
    }
    if workload.external_proxy {
        // Where the proxy then listens is its own choice.
        return true;
    }
    let global = |ip: &&IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_link_local() && !ip.is_loopback() && !ip.is_multicast(),
        IpAddr::V6(ip) => !ip.is_unicast_link_local() && !ip.is_loopback() && !ip.is_multicast(),
    };
    match workload.addresses.iter().find(global) {
        Some(first) => *first == ip,
        None => (ip.is_ipv4() && workload.is_v4()) || (ip.is_ipv6() && workload.is_v6()),
    }
}

/// Where a listener's connections lead.
fn forward(workload: &Workload<'_>, endpoint: &str, dst: SocketAddr) -> Outcome {
    let reason = Reason::IngressListener;
    if endpoint.starts_with("unix://") {
        return Outcome {
            targets: [endpoint.to_owned()].into(),
            ..outcome(Path::Relay, reason)
        };
    }
    if endpoint.is_empty() || endpoint.starts_with(':') {
        return Outcome {
            targets: [ORIGINAL.to_owned()].into(),
            ..outcome(Path::Pass, reason)
        };
    }
    let at: SocketAddr = endpoint.parse().expect("validated");
    let first = |v4: bool| {
        workload
            .addresses
            .iter()
            .find(|ip| ip.is_ipv4() == v4)
            .copied()
    };
    let ip = match at.ip() {
        ip if ip.is_unspecified() => first(at.is_ipv4()).unwrap_or_else(|| loopback(at.is_ipv4())),
        ip if ip.is_ipv4() => loopback(workload.is_v4()),
        _ => loopback(!workload.is_v6()),
    };
    to(SocketAddr::new(ip, at.port()), dst)
}

fn to(at: SocketAddr, dst: SocketAddr) -> Outcome {
    // A socket cannot be given connections of the other family.
    let path = if at.is_ipv4() == dst.is_ipv4() {
        Path::Direct
    } else {
        Path::Relay
    };
    Outcome {
        targets: [at.to_string()].into(),
        ..outcome(path, Reason::IngressListener)
    }
}

fn loopback(v4: bool) -> IpAddr {
    if v4 {
        Ipv4Addr::LOCALHOST.into()
    } else {
        Ipv6Addr::LOCALHOST.into()
    }
}
