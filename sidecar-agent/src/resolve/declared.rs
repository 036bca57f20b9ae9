//! Which resource, and which field of it, decided a connection.

use serde::Serialize;
use sidecar_common::{Reason, decide::Direction};

use crate::{
    compile::plan::{DeclaredBy, Listener},
    model::{
        ResourceRef,
        settings::{
            DNS_CAPTURE, DUAL_STACK, EXCLUDE_INBOUND_PORTS, EXCLUDE_INTERFACES,
            EXCLUDE_OUTBOUND_PORTS, EXCLUDE_OUTBOUND_RANGES, INCLUDE_INBOUND_PORTS,
            INCLUDE_OUTBOUND_PORTS, INCLUDE_OUTBOUND_RANGES, INTERCEPTION_MODE,
            KUBEVIRT_INTERFACES, LOOPBACK_CIDR, OWNER_GROUPS, OWNER_GROUPS_EXCLUDE, STATUS_PORT,
            Setting, VIRTUAL_INTERFACES,
        },
        workload::{
            ADDRESSES_ANNOTATION, FAILURE_POLICY_ANNOTATION, PROXY_ANNOTATION,
            PROXY_CONFIG_ANNOTATION,
        },
    },
};

use super::{
    ResolvedWorkload,
    traffic::{OwnerGroups, Written},
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
    let of_workload = |field: String| Declared {
        resource: workload.resource.clone(),
        field,
    };
    let by_annotation = |name: &str| {
        let is_there = workload.annotations.contains(name);
        is_there.then(|| of_workload(format!("metadata.annotations[{name}]")))
    };
    let by_setting = |setting: &Setting| match workload.origins.of(setting)? {
        Written::Annotation => by_annotation(setting.annotation),
        Written::ProxyConfig => by_annotation(PROXY_CONFIG_ANNOTATION),
        Written::Mesh if setting.field.is_empty() => by_mesh(&format!(
            "defaultConfig.proxyMetadata[{}]",
            setting.environment
        )),
        Written::Mesh => by_mesh(&format!("defaultConfig.{}", setting.field)),
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
        Reason::ExcludedPort if outbound => by_setting(&EXCLUDE_OUTBOUND_PORTS),
        Reason::ExcludedPort => {
            let setting = if workload.traffic.status_port == port {
                &STATUS_PORT
            } else {
                &EXCLUDE_INBOUND_PORTS
            };
            by_setting(setting).filter(|_| !workload.traffic.is_always_exempt(port))
        }
        Reason::ExcludedRange => by_setting(&EXCLUDE_OUTBOUND_RANGES),
        Reason::IncludedPort if outbound => by_setting(&INCLUDE_OUTBOUND_PORTS),
        Reason::IncludedPort => by_setting(&INCLUDE_INBOUND_PORTS),
        Reason::IncludedRange => by_setting(&INCLUDE_OUTBOUND_RANGES),
        Reason::NotIncluded if outbound => by_setting(&INCLUDE_OUTBOUND_RANGES),
        // Without the annotation: the workload has no network namespace of its own.
        Reason::NotIncluded => by_setting(&INCLUDE_INBOUND_PORTS)
            .or_else(|| Some(of_workload("metadata.annotations".into()))),
        Reason::CaptureAll | Reason::ProxyOwn | Reason::ProxySelfCall | Reason::Passthrough => {
            by_annotation(PROXY_ANNOTATION)
        }
        // Elsewhere it is because the workload calls itself.
        Reason::Loopback if !workload.traffic.exempts_self() => by_setting(&LOOPBACK_CIDR),
        Reason::OwnerGroup => by_setting(match workload.traffic.owner_groups {
            OwnerGroups::Only(_) => &OWNER_GROUPS,
            OwnerGroups::Except(_) => &OWNER_GROUPS_EXCLUDE,
        }),
        Reason::ExcludedInterface => by_setting(&EXCLUDE_INTERFACES),
        Reason::VirtualInterface => {
            by_setting(&VIRTUAL_INTERFACES).or_else(|| by_setting(&KUBEVIRT_INTERFACES))
        }
        Reason::Dns => by_setting(&DNS_CAPTURE),
        Reason::Ipv6Off => by_setting(&DUAL_STACK)
            .or_else(|| by_annotation(ADDRESSES_ANNOTATION))
            .or_else(|| Some(of_workload("spec.address".into()))),
        Reason::InterceptionNone => by_setting(&INTERCEPTION_MODE),
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
        Reason::ProxyGone | Reason::MapFull | Reason::NoMemoryOpen | Reason::PlanIncompleteOpen => {
            by_annotation(FAILURE_POLICY_ANNOTATION)
        }
        _ => by_listener(),
    }
}
