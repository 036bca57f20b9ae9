//! Which pods are captured, and why. Pure: a pod, the labels of its namespace, and the node's policy.
//!
//! Who speaks later counts for more: the proxy container, the namespace's label, the pod's label,
//! its annotation, and at last an operator (`sidecar-agent capture`, which is not asked here). Where
//! two say different things at the same place, the one that opts out counts.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use serde::Serialize;

use super::containers;
use crate::model::workload::CAPTURE_ANNOTATION;

/// Of pods and, as Istio's injector has it, preferred to the annotation of the same name.
pub const INJECT: &str = "sidecar.istio.io/inject";
/// Of namespaces: `enabled` or `disabled`.
pub const INJECTION: &str = "istio-injection";
/// Of namespaces and pods: the control plane that injects.
pub const REVISION: &str = "istio.io/rev";
/// Of pods that ztunnel captures: `enabled`.
pub const AMBIENT: &str = "ambient.istio.io/redirection";

/// Init containers by which Istio has set up its own rules, or makes sure that its CNI plugin has.
const ISTIO_RULES: [&str; 2] = ["istio-init", "istio-validation"];

/// Which pods of the node are never captured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Namespaces whose pods are left alone, the agent's own among them.
    pub excluded_namespaces: BTreeSet<String>,
    /// The agent's own pod: namespace and name.
    pub own_pod: Option<(String, String)>,
}

/// What becomes of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Capture {
    /// Its connections are captured.
    On,
    /// It would be captured, and has opted out: programs are attached, and let everything pass,
    /// until it or an operator says otherwise.
    Off,
    /// Nothing is attached to it.
    Left,
}

/// Why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// It has a proxy.
    Proxy,
    /// The namespace's label says so.
    NamespaceLabel,
    /// The pod's label says so.
    PodLabel,
    /// The pod's annotation says so.
    Annotation,
    /// `sidecar.istio.io/inject` says that it takes no part in the mesh.
    InjectionOff,
    /// It has no network namespace of its own.
    HostNetwork,
    /// It has run to its end.
    Ended,
    /// Its namespace is excluded.
    ExcludedNamespace,
    /// It is the agent's own.
    OwnPod,
    /// Istio's own rules capture it: it has the init container `istio-init` or `istio-validation`.
    IstioRules,
    /// Istio's ztunnel captures it.
    Ambient,
    /// Its proxy is a gateway.
    Gateway,
    /// Its proxy is told not to run Envoy (`DISABLE_ENVOY`).
    EnvoyDisabled,
    /// A proxy was to be injected, and there is none.
    ProxyMissing,
    /// It has no proxy, and nobody asks for it.
    NotAsked,
}

impl Reason {
    /// For people, as the end of "captured because", "opted out because" or "left alone because".
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Proxy => "it has a sidecar proxy",
            Self::NamespaceLabel => "the label of its namespace says so",
            Self::PodLabel => "its label says so",
            Self::Annotation => "its annotation says so",
            Self::InjectionOff => "sidecar.istio.io/inject is false",
            Self::HostNetwork => "it is in the host's network namespace",
            Self::Ended => "it has ended",
            Self::ExcludedNamespace => "its namespace is excluded",
            Self::OwnPod => "it is the agent's own",
            Self::IstioRules => {
                "Istio's iptables rules capture it (istio-init or istio-cni): have it injected \
                 without them, or set its own capture label or annotation to `on`"
            }
            Self::Ambient => {
                "Istio's ztunnel captures it: take it out of the ambient mesh, or set its own capture \
                 label or annotation to `on`"
            }
            Self::Gateway => "its proxy is a gateway",
            Self::EnvoyDisabled => "its proxy runs no Envoy (DISABLE_ENVOY)",
            Self::ProxyMissing => {
                "a proxy was to be injected and there is none: it was created before injection was \
                 enabled, or the injector has failed; delete the pod to have it made again"
            }
            Self::NotAsked => "it has no sidecar proxy and nobody asks for it",
        }
    }
}

/// What becomes of a pod, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// What becomes of it.
    pub capture: Capture,
    /// Why.
    pub reason: Reason,
    /// Where there is a value that is neither `on` nor `off`, and counts for nothing: "label of the
    /// namespace", and the value.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<(&'static str, String)>,
}

type Strings = BTreeMap<String, String>;

/// What somebody says, and what counts for less or more: the later, the more.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Namespace,
    Label,
    Annotation,
}

/// Decides about a pod in a namespace with these labels.
#[must_use]
pub fn decide(pod: &Pod, namespace_labels: &Strings, policy: &Policy) -> Decision {
    let mut unreadable = Vec::new();
    let (capture, reason) = match never(pod, policy) {
        Some(reason) => (Capture::Left, reason),
        None => asked(pod, namespace_labels, &mut unreadable),
    };
    Decision {
        capture,
        reason,
        unreadable,
    }
}

/// What nothing that is written in a pod or a namespace can change.
fn never(pod: &Pod, policy: &Policy) -> Option<Reason> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let own = |(own_namespace, own_name): &(String, String)| {
        own_namespace == namespace && own_name == name
    };
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    let host_network = |spec: &PodSpec| spec.host_network == Some(true);
    if policy.own_pod.as_ref().is_some_and(own) {
        Some(Reason::OwnPod)
    } else if policy.excluded_namespaces.contains(namespace) {
        Some(Reason::ExcludedNamespace)
    } else if pod.spec.as_ref().is_none_or(host_network) {
        Some(Reason::HostNetwork)
    } else if matches!(phase, Some("Succeeded" | "Failed")) {
        Some(Reason::Ended)
    } else {
        None
    }
}

fn asked(
    pod: &Pod,
    namespace: &Strings,
    unreadable: &mut Vec<(&'static str, String)>,
) -> (Capture, Reason) {
    let none = Strings::new();
    let labels = pod.metadata.labels.as_ref().unwrap_or(&none);
    let annotations = pod.metadata.annotations.as_ref().unwrap_or(&none);
    let spec = pod.spec.as_ref();
    let proxy = spec.and_then(containers::proxy);
    let inject = inject(labels, annotations);

    let mut said = Vec::new();
    let mut read = |of: &Strings, level, reason, place| match of.get(CAPTURE_ANNOTATION) {
        Some(value) if value == "on" => said.push((level, true, reason)),
        Some(value) if value == "off" => said.push((level, false, reason)),
        Some(value) => unreadable.push((place, value.clone())),
        None => {}
    };
    read(
        namespace,
        Level::Namespace,
        Reason::NamespaceLabel,
        "label of the namespace",
    );
    read(labels, Level::Label, Reason::PodLabel, "label");
    read(
        annotations,
        Level::Annotation,
        Reason::Annotation,
        "annotation",
    );
    if inject == Some(false) {
        said.push((Level::Label, false, Reason::InjectionOff));
    }
    // Of those of one level, the one that opts out.
    let last = said.iter().max_by_key(|(level, on, _)| (*level, !*on));
    let in_the_way = obstacle(spec, proxy, annotations);
    let by_default = proxy.is_some() && in_the_way.is_none();
    match last {
        Some((level, true, reason)) => match in_the_way {
            // A pod that asks itself knows what it is.
            Some(in_the_way) if *level < Level::Label => (Capture::Left, in_the_way),
            _ => (Capture::On, *reason),
        },
        Some((level, false, reason)) => {
            let on_below = said.iter().any(|(below, on, _)| *on && below <= level);
            let would_be = by_default || (on_below && in_the_way.is_none());
            let capture = if would_be {
                Capture::Off
            } else {
                Capture::Left
            };
            (capture, *reason)
        }
        None => match (proxy, in_the_way) {
            (_, Some(in_the_way)) => (Capture::Left, in_the_way),
            (Some(_), None) => (Capture::On, Reason::Proxy),
            (None, None) if is_injected(inject, labels, namespace) => {
                (Capture::Left, Reason::ProxyMissing)
            }
            (None, None) => (Capture::Left, Reason::NotAsked),
        },
    }
}

/// Whether the pod says that it takes part in the mesh.
fn inject(labels: &Strings, annotations: &Strings) -> Option<bool> {
    let said = labels.get(INJECT).or_else(|| annotations.get(INJECT))?;
    // As Go's strconv.ParseBool, which Istio's plugin uses.
    match said.as_str() {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// Whether Istio's injector was to give the pod a proxy.
fn is_injected(inject: Option<bool>, labels: &Strings, namespace: &Strings) -> bool {
    let by_namespace = match namespace.get(INJECTION).map(String::as_str) {
        Some("enabled") => true,
        Some("disabled") => false,
        _ => namespace.contains_key(REVISION),
    };
    inject.unwrap_or(by_namespace || labels.contains_key(REVISION))
}

/// Why a pod that does not ask for it itself is not captured.
fn obstacle(
    spec: Option<&PodSpec>,
    proxy: Option<&Container>,
    annotations: &Strings,
) -> Option<Reason> {
    if spec.is_some_and(|spec| containers::has_init(spec, &ISTIO_RULES)) {
        return Some(Reason::IstioRules);
    }
    if annotations
        .get(AMBIENT)
        .is_some_and(|value| value == "enabled")
    {
        return Some(Reason::Ambient);
    }
    let proxy = proxy?;
    let args = proxy.args.as_deref().unwrap_or_default();
    if args.first().is_some_and(|first| first == "proxy")
        && args.get(1).is_some_and(|kind| kind == "router")
    {
        return Some(Reason::Gateway);
    }
    let disabled = containers::env(proxy, "DISABLE_ENVOY") == Some("true");
    disabled.then_some(Reason::EnvoyDisabled)
}
