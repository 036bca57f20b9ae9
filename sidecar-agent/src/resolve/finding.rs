//! What resolve and compile have to say about the resources, as data.

use serde::Serialize;

use crate::model::{
    ResourceRef,
    catalogue::{self, Code},
    diagnostic::Diagnostic,
};

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingKind {
    /// Several Sidecars with a selector match one workload (Istio:
    /// `ConflictingSidecarWorkloadSelectors`).
    SeveralSelectors,
    /// Several Sidecars without a selector in one namespace (Istio:
    /// `MultipleSidecarsWithoutWorkloadSelectors`).
    SeveralDefaults,
    /// A selector matches no workload of its namespace (Istio: `ReferencedResourceNotFound`).
    SelectorMatchesNothing,
    /// A host of an egress listener matches no service.
    HostMatchesNothing,
    /// No service has the port of an egress listener.
    PortMatchesNothing,
    /// A Sidecar for workloads in ambient mode (Istio: `IneffectivePolicy`).
    Ineffective,
    /// An annotation of a workload cannot be used as written.
    BadAnnotation,
    /// A setting of a workload that another one leaves without effect.
    WithoutEffect,
    /// A workload's cgroup is another workload's, or lies within or around it.
    CgroupConflict,
    /// A listener that no connection can reach.
    Unreachable,
    /// Several services want one listener; only the first gets it.
    ListenerConflict,
    /// A listener or service has no endpoint that could be reached.
    NoEndpoint,
    /// Something only an L7 proxy can do, and the workload has none.
    NeedsProxy,
    /// A listener has the address and port that services of another one would need.
    Shadowed,
    /// A listener is at a port that Istio's proxy keeps for itself.
    ReservedPort,
    /// An application listens where a listener is.
    PortInUse,
}

impl FindingKind {
    /// Its entry in the catalogue.
    #[must_use]
    pub const fn code(self) -> &'static Code {
        match self {
            Self::SeveralSelectors => catalogue::SEVERAL_SELECTORS,
            Self::SeveralDefaults => catalogue::SEVERAL_DEFAULTS,
            Self::SelectorMatchesNothing => catalogue::SELECTOR_MATCHES_NOTHING,
            Self::HostMatchesNothing => catalogue::HOST_MATCHES_NOTHING,
            Self::PortMatchesNothing => catalogue::PORT_MATCHES_NOTHING,
            Self::Ineffective => catalogue::INEFFECTIVE,
            Self::BadAnnotation => catalogue::BAD_ANNOTATION,
            Self::WithoutEffect => catalogue::WITHOUT_EFFECT,
            Self::CgroupConflict => catalogue::CGROUP_CONFLICT,
            Self::Unreachable => catalogue::UNREACHABLE,
            Self::ListenerConflict => catalogue::LISTENER_CONFLICT,
            Self::NoEndpoint => catalogue::NO_ENDPOINT,
            Self::NeedsProxy => catalogue::NEEDS_PROXY,
            Self::Shadowed => catalogue::SHADOWED,
            Self::ReservedPort => catalogue::RESERVED_PORT,
            Self::PortInUse => catalogue::PORT_IN_USE,
        }
    }
}

/// One finding. Its order is the order of output.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// The resource it is about.
    pub resource: Option<ResourceRef>,
    /// What was found.
    pub kind: FindingKind,
    /// Field path in the resource, such as `spec.egress[1]`; empty: the whole resource.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// How to mend it.
    pub remedy: String,
    /// The other resources that take part in it.
    pub related: Vec<ResourceRef>,
}

impl From<&Finding> for Diagnostic {
    fn from(finding: &Finding) -> Self {
        let code = finding.kind.code();
        Self {
            code: code.id,
            severity: code.severity,
            resource: finding.resource.clone(),
            field: finding.field.clone(),
            message: finding.message.clone(),
            remedy: finding.remedy.clone(),
            location: None,
        }
    }
}
