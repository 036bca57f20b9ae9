//! Which egress listeners there are: one after the other, as Istio makes them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use sidecar_agent::model::{
    Snapshot,
    mesh::InterceptionMode,
    sidecar::{CaptureMode, EgressListener},
};

use super::{
    Workload,
    services::{Endpoint, Port, Protocol, Service, protocol},
    visibility::{egress, exposed},
};

/// What one listener address and port serves.
pub struct Listener<'a> {
    /// `None`: every address.
    pub at: Option<IpAddr>,
    pub port: u16,
    pub real: bool,
    /// The address was written, or follows from being real; else it is the service's.
    pub given: bool,
    pub members: Vec<Member<'a>>,
}

#[derive(Clone)]
pub struct Member<'a> {
    pub service: &'a Service,
    pub port: &'a Port,
    pub protocol: Protocol,
    /// Of the connections to every address, those that are the service's; `None`: not said.
    pub network: Option<IpNet>,
}

pub fn listeners<'a>(
    snapshot: &Snapshot,
    services: &'a [Service],
    workload: &Workload<'_>,
) -> Vec<Listener<'a>> {
    let mut made: Vec<Listener<'a>> = Vec::new();
    for listener in egress(workload.sidecar) {
        if listener.bind.starts_with("unix://") {
            // No connection has to be captured for it.
            continue;
        }
        // The most specific port wins: what there is when the catch-all comes is closed to it.
        let locked = if listener.port.is_none() {
            made.len()
        } else {
            0
        };
        for exposed in exposed(snapshot, services, workload.namespace(), &listener) {
            for (number, protocol, port) in ports(&listener, &exposed.ports) {
                let candidate = (exposed.service, port, protocol);
                for new in places(snapshot, workload, &listener, number, candidate) {
                    add(&mut made, locked, new);
                }
            }
        }
    }
    made
}

/// The ports of a service for which there is a listener: its number, protocol, the service's port.
fn ports<'a>(listener: &EgressListener, exposed: &[&'a Port]) -> Vec<(u16, Protocol, &'a Port)> {
    let own = listener
        .port
        .as_ref()
        .map(|port| (port.number, protocol(&port.protocol)));
    let mut ports: Vec<_> = exposed
        .iter()
        .filter(|port| port.protocol != Protocol::Udp)
        .map(|port| match &own {
            Some((number, protocol)) => (small(*number), *protocol, *port),
            None => (port.number, port.protocol, *port),
        })
        .filter(|(_, protocol, _)| *protocol != Protocol::Udp)
        .collect();
    if own.is_some() {
        ports.truncate(1);
    }
    ports
}

fn small(port: u32) -> u16 {
    u16::try_from(port).expect("a valid port")
}

/// The listeners a service's port wants.
fn places<'a>(
    snapshot: &Snapshot,
    workload: &Workload<'_>,
    listener: &EgressListener,
    number: u16,
    (service, port, protocol): (&'a Service, &'a Port, Protocol),
) -> Vec<Listener<'a>> {
    let real =
        workload.mode() == InterceptionMode::None || listener.capture_mode == CaptureMode::None;
    let bind: Option<IpAddr> = listener
        .bind
        .parse()
        .ok()
        .map(|ip: IpAddr| ip.to_canonical());
    let http = matches!(protocol, Protocol::Http | Protocol::HttpProxy);
    let mesh = &snapshot.mesh;
    let own = [
        15021,
        15090,
        mesh.proxy_listen_port,
        mesh.proxy_inbound_listen_port,
    ];
    let on_wildcard = match bind {
        Some(ip) => ip.is_unspecified(),
        None => http && !real,
    };
    if on_wildcard && own.contains(&number) {
        return Vec::new();
    }
    let listener = |at, given, network| Listener {
        at,
        port: number,
        real,
        given,
        members: vec![Member {
            service,
            port,
            protocol,
            network,
        }],
    };
    if let Some(ip) = bind {
        return vec![listener(
            Some(ip).filter(|ip| !ip.is_unspecified()),
            true,
            None,
        )];
    }
    if real {
        let v4 = workload.is_v4().then_some(Ipv4Addr::LOCALHOST.into());
        let v6 = workload.is_v6().then_some(Ipv6Addr::LOCALHOST.into());
        return v4
            .into_iter()
            .chain(v6)
            .map(|ip| listener(Some(ip), true, None))
            .collect();
    }
    if http {
        return vec![listener(None, false, None)];
    }
    let mut places: Vec<_> = service
        .singles()
        .into_iter()
        .map(|ip| listener(Some(ip), false, None))
        .collect();
    places.extend(
        service
            .ranges()
            .into_iter()
            .map(|net| listener(None, false, Some(net))),
    );
    if places.is_empty() {
        // Known by its endpoints; the workload does not call itself.
        if service.headless || service.alias {
            for ip in endpoint_ips(port) {
                if workload.addresses.first() != Some(&ip) {
                    places.push(listener(Some(ip), false, None));
                }
            }
        } else {
            places.push(listener(None, false, None));
        }
    }
    places
}

pub fn endpoint_ips(port: &Port) -> Vec<IpAddr> {
    let mut ips: Vec<IpAddr> = port
        .endpoints
        .iter()
        .filter_map(|endpoint| match endpoint {
            Endpoint::Tcp(address) => Some(address.ip()),
            Endpoint::Unix(_) => None,
        })
        .collect();
    ips.dedup();
    ips
}

fn add<'a>(made: &mut Vec<Listener<'a>>, locked: usize, mut new: Listener<'a>) {
    let same = |old: &Listener<'_>| (old.at, old.port) == (new.at, new.port);
    let Some(index) = made.iter().position(same) else {
        made.push(new);
        return;
    };
    let known = &mut made[index];
    let new = new.members.remove(0);
    let is_http = |m: &Member<'_>| matches!(m.protocol, Protocol::Http | Protocol::HttpProxy);
    let alone = |m: &Member<'_>| m.protocol == Protocol::ServerFirst;
    if index < locked {
        return;
    }
    // MONGO and MYSQL share with nothing of another kind.
    if alone(&known.members[0]) != alone(&new) {
        return;
    }
    // What only a name tells apart, where there is no address of its own.
    let name = |m: &Member<'_>| {
        let by_name = m.protocol == Protocol::Tls && known.at.is_none();
        by_name.then(|| m.service.host.clone())
    };
    let clash = known.members.iter().any(|old| {
        !is_http(old) && !is_http(&new) && old.network == new.network && name(old) == name(&new)
    });
    if !clash {
        known.members.push(new);
    }
}
