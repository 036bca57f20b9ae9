//! Inbound rules of a workload without a proxy.

use std::net::{IpAddr, SocketAddr};

use sidecar_common::{Path, Reason, decide::Direction};

use crate::{
    model::mesh::MeshConfig,
    resolve::{
        Finding, FindingKind, Registry, ResolvedWorkload,
        capture::{self, Families},
        inbound::{self, InboundListener, Skipped},
    },
};

use super::{
    builder::{InboundBuilder, exempting_self, first, leading_to, reachable_from, rule},
    plan::{DeclaredBy, Field, Listener, Place, Target},
};

/// Adds the inbound rules.
pub(super) fn compile(
    builder: &mut InboundBuilder,
    workload: &ResolvedWorkload,
    mesh: &MeshConfig,
    registry: &Registry,
) {
    for listener in declared(builder, workload) {
        add(builder, workload, &listener);
    }
    let declares = workload
        .sidecar
        .as_ref()
        .is_some_and(|s| !s.spec.ingress.is_empty());
    // Listeners that follow from services and pass connections on as they are need no rules.
    if !declares && mesh.inbound_localhost {
        let ResolvedWorkload {
            namespace,
            labels,
            ports,
            addresses,
            ..
        } = workload;
        let mode = workload.mode();
        for listener in inbound::derived(mesh, registry, mode, namespace, labels, ports, addresses)
        {
            add(builder, workload, &listener);
        }
    }
    builder.default(if capture::captures(workload.mode()) {
        rule(Path::Pass, Reason::UndeclaredPort, None)
    } else {
        rule(Path::Pass, Reason::InterceptionNone, None)
    });
}

/// The listeners that the Sidecar declares; what is wrong with others is reported.
pub(super) fn declared(
    builder: &mut InboundBuilder,
    workload: &ResolvedWorkload,
) -> Vec<InboundListener> {
    let Some(sidecar) = &workload.sidecar else {
        return Vec::new();
    };
    let mut listeners = Vec::new();
    for (index, listener) in inbound::declared(&sidecar.spec, workload.mode(), &workload.addresses)
    {
        match listener {
            Ok(listener) => listeners.push(listener),
            Err(Skipped { kind, message }) => {
                report(
                    builder,
                    workload,
                    kind,
                    Some(index),
                    message,
                    "correct the listener",
                );
            }
        }
    }
    listeners
}

/// The local addresses on which captured connections reach a listener. A workload in the host's
/// network namespace must not capture what is others'.
pub(super) fn captured_at(workload: &ResolvedWorkload) -> Vec<IpAddr> {
    if workload.netns.is_some() {
        Families::of(&workload.addresses).wildcards()
    } else {
        workload.addresses.clone()
    }
}

fn add(builder: &mut InboundBuilder, workload: &ResolvedWorkload, listener: &InboundListener) {
    if listener.unix.is_some() {
        // The relay listens on it; no connection has to be decided.
        builder.listener(entry(listener));
        return;
    }
    let port = listener.port;
    let places = if listener.real {
        listener.binds.clone()
    } else {
        captured_at(workload)
    };
    if places.is_empty() {
        let message = format!(
            "port {port} is not captured: {} has neither a network namespace of its own nor an \
             address",
            workload.resource
        );
        let remedy = "declare the workload's address, or its network namespace";
        let kind = FindingKind::Unreachable;
        report(builder, workload, kind, listener.ingress, message, remedy);
        return;
    }
    let target = &listener.forward.target;
    let index = builder.listener(entry(listener));
    let excluded = !listener.real && workload.traffic.inbound(port) == Err(Reason::ExcludedPort);
    if excluded {
        let message = format!(
            "port {port} is excluded from capture on {}",
            workload.resource
        );
        let remedy = "use another port, or do not exclude this one";
        let kind = FindingKind::Unreachable;
        report(builder, workload, kind, listener.ingress, message, remedy);
    }
    for ip in places {
        let reason = Reason::IngressListener;
        let rule = if excluded {
            rule(Path::Pass, Reason::ExcludedPort, Some(index))
        } else {
            match (target, reachable_from(ip, std::slice::from_ref(target))) {
                (Target::Original, _) => rule(Path::Pass, reason, Some(index)),
                (_, endpoints) => match endpoints.first() {
                    Some(endpoint) => {
                        builder.listens_on(endpoint.port);
                        leading_to(rule(Path::Direct, reason, Some(index)), *endpoint)
                    }
                    // A socket cannot be given connections of the other family.
                    None => rule(Path::Relay, reason, Some(index)),
                },
            }
        };
        // A real listener serves the workload's own calls, too.
        let rule = if listener.real {
            first(rule)
        } else {
            exempting_self(rule)
        };
        builder.rule(ip, port, rule);
    }
}

/// The listener's entry in the plan.
pub(super) fn entry(listener: &InboundListener) -> Listener {
    Listener {
        direction: Direction::Inbound,
        place: match (&listener.unix, listener.binds.first()) {
            (Some(unix), _) => Place::Unix(unix.clone()),
            (None, Some(ip)) => Place::Ip(SocketAddr::new(*ip, listener.port)),
            (None, None) => Place::Port(listener.port),
        },
        declared: listener.ingress.map_or(DeclaredBy::Nothing, |index| {
            DeclaredBy::Sidecar(Field::Ingress(index))
        }),
        service: listener.service.clone(),
        targets: [listener.forward.target.clone()].into(),
    }
}

pub(super) fn report(
    builder: &mut InboundBuilder,
    workload: &ResolvedWorkload,
    kind: FindingKind,
    ingress: Option<usize>,
    message: String,
    remedy: &str,
) {
    let sidecar = workload
        .sidecar
        .as_ref()
        .map(|sidecar| sidecar.reference("Sidecar"));
    let (resource, field) = match (sidecar, ingress) {
        (Some(sidecar), Some(index)) => (sidecar, Field::Ingress(index).to_string()),
        _ => (workload.resource.clone(), String::new()),
    };
    builder.findings.push(Finding {
        resource: Some(resource),
        kind,
        field,
        message,
        remedy: remedy.into(),
        related: vec![workload.resource.clone()],
    });
}
