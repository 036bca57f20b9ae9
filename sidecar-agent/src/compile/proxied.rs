//! Rules of a workload with an external proxy: the lists decide what reaches it, and the rest is
//! the proxy's business.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use sidecar_common::{Path, Reason, decide::Direction, values::Rule};

use crate::resolve::{
    FindingKind, ResolvedWorkload,
    capture::{self, Families},
    inbound::InboundListener,
    listeners::{Bind, Member, OutboundListener},
    traffic::Include,
};

use super::{
    builder::{Compiled, InboundBuilder, OutboundBuilder, exempting_self, first, rule},
    egress, ingress,
    outbound::Inputs,
    plan::{DeclaredBy, Field, Listener},
    prefixes::Prefixes,
};

/// Any local address, per family.
const ANYWHERE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    IpAddr::V6(Ipv6Addr::UNSPECIFIED),
];

/// Compiles the outbound rules.
pub(super) fn outbound(
    mut builder: OutboundBuilder,
    inputs: &Inputs,
    listeners: &[OutboundListener<'_>],
) -> Compiled {
    for listener in listeners.iter().filter(|listener| listener.real) {
        // The proxy itself holds the listener open.
        let ips = match &listener.bind {
            Bind::Unix(_) => continue,
            Bind::Ip(ip) => vec![*ip],
            Bind::Wildcard => {
                let mut own = Families::of(&inputs.addresses).loopbacks();
                own.extend(&inputs.addresses);
                own
            }
        };
        let Some(member) = listener.members.first() else {
            continue;
        };
        let index = builder.listener(entry(inputs, listener, member));
        for ip in ips {
            let rule = rule(Path::Pass, Reason::NoneListener, Some(index));
            builder.rule(ip, listener.port, first(rule));
        }
    }
    if !capture::captures(inputs.traffic.mode) {
        let pass = rule(Path::Pass, Reason::InterceptionNone, None);
        return builder.finish([].into(), pass);
    }
    // Calls of the workload to itself do not get as far as these rules, unless they are captured.
    let (prefixes, default) =
        Prefixes::of_proxied(&inputs.traffic).finish(|reason| rule(Path::Proxy, reason, None));
    builder.finish(prefixes, default)
}

fn entry(inputs: &Inputs, listener: &OutboundListener<'_>, member: &Member<'_>) -> Listener {
    Listener {
        direction: Direction::Outbound,
        place: egress::place(listener),
        declared: if inputs.sidecar {
            DeclaredBy::Sidecar(Field::Egress(listener.egress))
        } else {
            DeclaredBy::Nothing
        },
        service: Some(Arc::clone(&member.service.hostname)),
        targets: egress::original(),
    }
}

/// Adds the inbound rules.
pub(super) fn inbound(builder: &mut InboundBuilder, workload: &ResolvedWorkload) {
    let traffic = &workload.traffic;
    let to_proxy = |reason, listener| exempting_self(rule(Path::Proxy, reason, listener));
    let places = if workload.netns.is_some() {
        ANYWHERE.to_vec()
    } else {
        workload.addresses.clone()
    };
    for listener in ingress::declared(builder, workload) {
        // A unix socket is the proxy's to listen on.
        if listener.unix.is_some() {
            continue;
        }
        let index = builder.listener(ingress::entry(&listener));
        let at = if listener.real {
            real_binds(workload, &listener)
        } else {
            places.clone()
        };
        let rule = match traffic.inbound(listener.port) {
            _ if listener.real => first(rule(Path::Pass, Reason::NoneListener, Some(index))),
            Err(Reason::ExcludedPort) => rule(Path::Pass, Reason::ExcludedPort, Some(index)),
            _ => to_proxy(Reason::IngressListener, Some(index)),
        };
        for ip in at {
            builder.rule(ip, listener.port, rule);
        }
    }
    if !capture::captures(workload.mode()) {
        builder.default(rule(Path::Pass, Reason::InterceptionNone, None));
        return;
    }
    let mut add = |port, rule: Rule| {
        for ip in &places {
            builder.rule(*ip, port, rule);
        }
    };
    let default = match &traffic.include_inbound {
        Include::Only(ports) => {
            for port in ports {
                match traffic.inbound(*port) {
                    Ok(reason) => add(*port, to_proxy(reason, None)),
                    Err(reason) => add(*port, rule(Path::Pass, reason, None)),
                }
            }
            rule(Path::Pass, Reason::NotIncluded, None)
        }
        // "Everything" would take what is others' where the namespace is the host's.
        Include::All if workload.netns.is_none() => {
            let message = format!(
                "{} shares the host's network namespace: only declared ports are captured",
                workload.resource
            );
            let remedy = "list the ports in includeInboundPorts or in the Sidecar's ingress, or \
                          declare the network namespace";
            let kind = FindingKind::Unreachable;
            ingress::report(builder, workload, kind, None, message, remedy);
            rule(Path::Pass, Reason::NotIncluded, None)
        }
        Include::All => {
            for port in traffic.exempt_inbound() {
                add(port, rule(Path::Pass, Reason::ExcludedPort, None));
            }
            to_proxy(Reason::CaptureAll, None)
        }
    };
    builder.default(default);
}

/// Where the proxy listens for real: where it says, else at any address.
fn real_binds(workload: &ResolvedWorkload, listener: &InboundListener) -> Vec<IpAddr> {
    let ingress = workload
        .sidecar
        .as_ref()
        .zip(listener.ingress)
        .and_then(|(sidecar, index)| sidecar.spec.ingress.get(index));
    match ingress {
        // Also at the very addresses: in the host's namespace, lists have rules for those, which come
        // before one for any address.
        Some(ingress) if ingress.bind.is_empty() => {
            let own = workload.addresses.iter().copied();
            ANYWHERE.into_iter().chain(own).collect()
        }
        _ => listener.binds.clone(),
    }
}
