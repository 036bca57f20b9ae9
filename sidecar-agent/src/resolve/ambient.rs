//! Workloads in ambient mode, to which no Sidecar applies (Istio: `analyzers/sidecar/selector.go`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::model::{Object, sidecar::Sidecar};

use super::{
    finding::{Finding, FindingKind},
    select::{self, Sidecars},
};

/// Labels or annotations.
pub type Labels = BTreeMap<String, String>;

/// A workload, as far as it decides which Sidecars conflict.
#[derive(Clone, Copy, Debug)]
pub struct Workload<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// What selectors match.
    pub labels: &'a Labels,
    /// Its annotations.
    pub annotations: &'a Labels,
}

impl Workload<'_> {
    /// Whether its connections go to a ztunnel: Istio's CNI plugin says so in an annotation.
    #[must_use]
    pub fn is_ambient(&self) -> bool {
        has(self.annotations, "ambient.istio.io/redirection", "enabled")
    }
}

/// Whether the labels of a namespace put it in ambient mode. Those that inject a sidecar win.
#[must_use]
pub fn is_ambient(namespace: &Labels) -> bool {
    let injected = has(namespace, "istio-injection", "enabled")
        || namespace
            .get("istio.io/rev")
            .is_some_and(|rev| !rev.is_empty());
    !injected && has(namespace, "istio.io/dataplane-mode", "ambient")
}

fn has(labels: &Labels, key: &str, value: &str) -> bool {
    labels.get(key).is_some_and(|found| found == value)
}

/// What is wrong with how Sidecars select workloads: [`Sidecars::conflicts`] among workloads that
/// are not in ambient mode, and Sidecars that have no effect because of it. `namespaces` are the
/// labels of those that are known.
#[must_use]
pub fn conflicts(
    sidecars: &[Arc<Object<Sidecar>>],
    root_namespace: &str,
    workloads: &[Workload<'_>],
    namespaces: &BTreeMap<&str, &Labels>,
) -> Vec<Finding> {
    let (ambient, others): (Vec<Workload<'_>>, Vec<_>) =
        workloads.iter().partition(|workload| workload.is_ambient());
    let mut findings: Vec<_> = sidecars
        .iter()
        .filter_map(|sidecar| ineffective(sidecar, &ambient, namespaces))
        .collect();
    let without_effect: BTreeSet<_> = findings
        .iter()
        .filter_map(|finding| finding.resource.clone())
        .collect();
    let others = others.iter().map(|of| (of.namespace, of.labels));
    let mut conflicts = Sidecars::new(sidecars, root_namespace).conflicts(others);
    // One that selects workloads of both kinds still conflicts over the others.
    conflicts.retain(|found| {
        let about = found.resource.as_ref();
        found.kind == FindingKind::SeveralSelectors
            || about.is_none_or(|about| !without_effect.contains(about))
    });
    findings.extend(conflicts);
    findings
}

fn ineffective(
    sidecar: &Object<Sidecar>,
    ambient: &[Workload<'_>],
    namespaces: &BTreeMap<&str, &Labels>,
) -> Option<Finding> {
    let own = sidecar.meta.namespace.as_str();
    let selector = sidecar.spec.selector.as_ref();
    let (field, message) = if let Some(wanted) = selector.filter(|labels| !labels.is_empty()) {
        let selected =
            |of: &&Workload<'_>| of.namespace == own && select::matches(wanted, of.labels);
        ambient.iter().find(selected)?;
        (
            "spec.workloadSelector.labels",
            "selects a workload that is in ambient mode",
        )
    } else {
        namespaces.get(own).filter(|labels| is_ambient(labels))?;
        ("", "its namespace is in ambient mode")
    };
    Some(Finding {
        resource: Some(sidecar.reference("Sidecar")),
        kind: FindingKind::Ineffective,
        field: field.into(),
        message: format!("{message}: no Sidecar applies there"),
        remedy: "delete the Sidecar, or take what it selects out of ambient mode".into(),
        related: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ObjectMeta, Origin};

    fn labels(text: &str) -> Labels {
        let pairs = text.split(' ').filter_map(|pair| pair.split_once('='));
        pairs
            .map(|(key, value)| (key.into(), value.into()))
            .collect()
    }

    /// `namespace/name selector`; `-`: no selector.
    fn sidecar(text: &str) -> Arc<Object<Sidecar>> {
        let (full, selector) = text.split_once(' ').unwrap();
        let (namespace, name) = full.split_once('/').unwrap();
        Arc::new(Object {
            meta: ObjectMeta {
                name: name.into(),
                namespace: namespace.into(),
                ..ObjectMeta::default()
            },
            origin: Origin {
                file: "s.yaml".into(),
                line: 1,
            },
            spec: Sidecar {
                selector: (selector != "-").then(|| labels(selector)),
                ..Sidecar::default()
            },
        })
    }

    #[test]
    fn namespaces_in_ambient_mode() {
        for (text, ambient) in [
            ("istio.io/dataplane-mode=ambient", true),
            (
                "istio.io/dataplane-mode=ambient istio-injection=disabled",
                true,
            ),
            ("istio.io/dataplane-mode=ambient istio.io/rev=", true),
            (
                "istio.io/dataplane-mode=ambient istio-injection=enabled",
                false,
            ),
            ("istio.io/dataplane-mode=ambient istio.io/rev=canary", false),
            ("istio.io/dataplane-mode=none", false),
            ("", false),
        ] {
            assert_eq!(is_ambient(&labels(text)), ambient, "{text}");
        }
    }

    #[test]
    fn sidecars_without_effect() {
        use FindingKind::{Ineffective, SelectorMatchesNothing, SeveralDefaults, SeveralSelectors};
        let (redirected, plain) = (labels("ambient.istio.io/redirection=enabled"), labels(""));
        let (x, y) = (labels("app=x"), labels("app=y"));
        let in_namespace = |namespace, labels, annotations| Workload {
            namespace,
            labels,
            annotations,
        };
        let workloads = [
            in_namespace("a", &x, &redirected),
            in_namespace("a", &y, &plain),
            in_namespace("b", &x, &redirected),
            in_namespace("b", &x, &plain),
        ];
        let namespace = labels("istio.io/dataplane-mode=ambient");
        let namespaces = [("c", &namespace), ("d", &plain)].into();
        for (sidecars, expected) in [
            (&["a/s app=x"][..], &[("s", Ineffective)][..]),
            (&["a/s app=y"], &[]),
            (&["a/s app=z"], &[("s", SelectorMatchesNothing)]),
            // Conflicts are about sidecars, and there is none.
            (
                &["a/s app=x", "a/t app=x"],
                &[("s", Ineffective), ("t", Ineffective)],
            ),
            (
                &["b/s app=x", "b/t app=x"],
                &[
                    ("s", Ineffective),
                    ("t", Ineffective),
                    ("s", SeveralSelectors),
                ],
            ),
            (
                &["c/s -", "c/t -"],
                &[("s", Ineffective), ("t", Ineffective)],
            ),
            (&["d/s -", "d/t -"], &[("s", SeveralDefaults)]),
            (&["a/s -"], &[]),
        ] {
            let sidecars: Vec<_> = sidecars.iter().map(|text| sidecar(text)).collect();
            let found = conflicts(&sidecars, "istio-system", &workloads, &namespaces);
            let found: Vec<_> = found
                .iter()
                .map(|found| (found.resource.as_ref().unwrap().name.as_str(), found.kind))
                .collect();
            assert_eq!(found, expected, "{sidecars:?}");
        }
    }
}
