//! Which resource, and which field of it, decided a connection.

use serde::Serialize;
use sidecar_common::{Reason, decide::Direction};

use crate::{
    compile::plan::{DeclaredBy, Listener},
    model::{ResourceRef, workload::PROXY_ANNOTATION},
};

use super::{
    ResolvedWorkload,
    traffic::{
        EXCLUDE_INBOUND_PORTS, EXCLUDE_OUTBOUND_PORTS, EXCLUDE_OUTBOUND_RANGES,
        INCLUDE_INBOUND_PORTS, INCLUDE_OUTBOUND_PORTS, INCLUDE_OUTBOUND_RANGES, INTERCEPTION_MODE,
        STATUS_PORT,
    },
};

/// What decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Declared {
    /// The resource.
    pub resource: ResourceRef,
    /// Field path in it; empty: the resource as a whole.
    pub field: String,
}

/// Says what decided a connection (or a rule) to this port, given the reason and the listener
/// that the decision has. `mesh` is the `MeshConfig`, if there is one. `None`: no resource says
/// anything about it, and Istio's default holds.
#[must_use]
pub fn declared(
    workload: &ResolvedWorkload,
    mesh: Option<&ResourceRef>,
    direction: Direction,
    reason: Reason,
    listener: Option<&Listener>,
    port: u16,
) -> Option<Declared> {
    let by_mesh = |field: &str| {
        Some(Declared {
            resource: mesh?.clone(),
            field: field.into(),
        })
    };
    let by_annotation = |name: &str| {
        workload.annotations.contains(name).then(|| Declared {
            resource: workload.resource.clone(),
            field: format!("metadata.annotations[{name}]"),
        })
    };
    let by_listener = || {
        let listener = listener?;
        Some(Declared {
            resource: match &listener.declared {
                DeclaredBy::Nothing => return None,
                DeclaredBy::Resource(resource) => ResourceRef::clone(resource),
                DeclaredBy::Sidecar(_) => workload.sidecar.as_ref()?.reference("Sidecar"),
            },
            field: listener.field(),
        })
    };
    let outbound = direction == Direction::Outbound;
    match reason {
        Reason::ExcludedPort if outbound => by_annotation(EXCLUDE_OUTBOUND_PORTS),
        Reason::ExcludedPort => {
            let annotation = if workload.traffic.status_port == port {
                STATUS_PORT
            } else {
                EXCLUDE_INBOUND_PORTS
            };
            by_annotation(annotation).filter(|_| !workload.traffic.is_always_exempt(port))
        }
        Reason::ExcludedRange => by_annotation(EXCLUDE_OUTBOUND_RANGES),
        Reason::IncludedPort if outbound => by_annotation(INCLUDE_OUTBOUND_PORTS),
        Reason::IncludedPort => by_annotation(INCLUDE_INBOUND_PORTS),
        Reason::IncludedRange => by_annotation(INCLUDE_OUTBOUND_RANGES),
        Reason::NotIncluded if outbound => by_annotation(INCLUDE_OUTBOUND_RANGES),
        // Without the annotation: the workload has no network namespace of its own.
        Reason::NotIncluded => by_annotation(INCLUDE_INBOUND_PORTS).or_else(|| {
            Some(Declared {
                resource: workload.resource.clone(),
                field: "metadata.annotations".into(),
            })
        }),
        Reason::CaptureAll | Reason::ProxyOwn => by_annotation(PROXY_ANNOTATION),
        Reason::InterceptionNone => {
            by_annotation(INTERCEPTION_MODE).or_else(|| by_mesh("defaultConfig.interceptionMode"))
        }
        Reason::AllowAny | Reason::RegistryOnly => {
            by_listener().or_else(|| by_mesh("outboundTrafficPolicy.mode"))
        }
        // A listener that follows from a service is there because of the mesh's setting.
        Reason::IngressListener => by_listener().or_else(|| by_mesh("inboundTrafficPolicy.mode")),
        Reason::UndeclaredPort => workload
            .sidecar
            .as_ref()
            .filter(|sidecar| !sidecar.spec.ingress.is_empty())
            .map(|sidecar| Declared {
                resource: sidecar.reference("Sidecar"),
                field: "spec.ingress".into(),
            }),
        _ => by_listener(),
    }
}
