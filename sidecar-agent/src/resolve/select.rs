//! Which Sidecar applies to a workload.
//!
//! Istio (`push_context.go`): Sidecars are ordered by (creation, name, namespace), those with a
//! selector first; the first of the workload's namespace that matches applies; else the first
//! selector-less one of the root namespace. Exactly one applies: nothing is merged.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::model::{
    Object, ResourceRef,
    mesh::MeshConfig,
    sidecar::{OutboundTrafficPolicy, Sidecar},
};

use super::finding::{Finding, FindingKind};

/// What kind of proxy a workload is. Only sidecars get a Sidecar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProxyType {
    /// Beside an application.
    #[default]
    Sidecar,
    /// A gateway.
    Router,
    /// An ambient waypoint.
    Waypoint,
}

/// All Sidecars, ordered for selection.
#[derive(Debug)]
pub struct Sidecars<'a> {
    by_namespace: BTreeMap<&'a str, Vec<&'a Arc<Object<Sidecar>>>>,
    mesh_default: Option<&'a Arc<Object<Sidecar>>>,
}

impl<'a> Sidecars<'a> {
    /// Orders `sidecars`, which may come in any order.
    #[must_use]
    pub fn new(sidecars: &'a [Arc<Object<Sidecar>>], root_namespace: &str) -> Self {
        let mut by_namespace: BTreeMap<&str, Vec<&Arc<Object<Sidecar>>>> = BTreeMap::new();
        for sidecar in sidecars {
            by_namespace
                .entry(&sidecar.meta.namespace)
                .or_default()
                .push(sidecar);
        }
        for list in by_namespace.values_mut() {
            list.sort_by_key(|s| (s.spec.selector.is_none(), s.meta.created, &s.meta.name));
        }
        let mesh_default = by_namespace
            .get(root_namespace)
            .and_then(|list| list.iter().find(|s| s.spec.selector.is_none()).copied());
        Self {
            by_namespace,
            mesh_default,
        }
    }

    /// The Sidecar that applies to a workload; `None`: none, and Istio's built-in default holds.
    #[must_use]
    pub fn select(
        &self,
        proxy_type: ProxyType,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> Option<&'a Arc<Object<Sidecar>>> {
        if proxy_type != ProxyType::Sidecar {
            return None;
        }
        self.namespace(namespace)
            .find(|s| {
                s.spec
                    .selector
                    .as_ref()
                    .is_none_or(|wanted| matches(wanted, labels))
            })
            .or(self.mesh_default)
    }

    /// Conflicts among the Sidecars, given every known workload as (namespace, labels). Creation
    /// order decides at run time regardless.
    ///
    /// A selector that matches nothing is reported only in namespaces of which workloads are
    /// known: elsewhere it may well match one.
    #[must_use]
    pub fn conflicts<'w>(
        &self,
        workloads: impl IntoIterator<Item = (&'w str, &'w BTreeMap<String, String>)>,
    ) -> Vec<Finding> {
        let mut known: BTreeMap<&str, BTreeSet<&BTreeMap<String, String>>> = BTreeMap::new();
        for (namespace, labels) in workloads {
            known.entry(namespace).or_default().insert(labels);
        }
        let mut findings = Vec::new();
        for (namespace, sidecars) in &self.by_namespace {
            let defaults: Vec<_> = sidecars
                .iter()
                .copied()
                .filter(|s| s.spec.selector.is_none())
                .collect();
            findings.extend(several(
                &defaults,
                FindingKind::SeveralDefaults,
                "has no workloadSelector, and neither have others of its namespace",
            ));
            let Some(labels) = known.get(namespace) else {
                continue;
            };
            findings.extend(selector_conflicts(sidecars, labels));
        }
        findings
    }

    fn namespace(&self, namespace: &str) -> impl Iterator<Item = &'a Arc<Object<Sidecar>>> + '_ {
        self.by_namespace
            .get(namespace)
            .into_iter()
            .flatten()
            .copied()
    }
}

/// What happens to unknown destinations: what the Sidecar says, else the mesh. It is the only
/// thing that falls back.
#[must_use]
pub fn outbound_traffic_policy(
    sidecar: Option<&Sidecar>,
    mesh: &MeshConfig,
) -> OutboundTrafficPolicy {
    sidecar
        .and_then(|s| s.outbound_traffic_policy)
        .unwrap_or(mesh.outbound_traffic_policy)
}

/// Whether every wanted label is there, with the wanted value.
#[must_use]
pub fn matches(wanted: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    wanted
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

fn selector_conflicts(
    sidecars: &[&Arc<Object<Sidecar>>],
    workloads: &BTreeSet<&BTreeMap<String, String>>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut conflicts: BTreeSet<Vec<usize>> = BTreeSet::new();
    let mut used = BTreeSet::new();
    for labels in workloads {
        let hits: Vec<usize> = sidecars
            .iter()
            .enumerate()
            .filter(|(_, s)| {
                s.spec
                    .selector
                    .as_ref()
                    .is_some_and(|wanted| matches(wanted, labels))
            })
            .map(|(index, _)| index)
            .collect();
        used.extend(hits.iter().copied());
        conflicts.insert(hits);
    }
    for hits in conflicts {
        let hits: Vec<_> = hits
            .iter()
            .filter_map(|i| sidecars.get(*i).copied())
            .collect();
        findings.extend(several(
            &hits,
            FindingKind::SeveralSelectors,
            "selects a workload that others select, too",
        ));
    }
    for (index, sidecar) in sidecars.iter().enumerate() {
        if sidecar.spec.selector.is_some() && !used.contains(&index) {
            findings.push(Finding {
                resource: Some(sidecar.reference("Sidecar")),
                kind: FindingKind::SelectorMatchesNothing,
                field: "spec.workloadSelector.labels".into(),
                message: "selects no known workload of its namespace".into(),
                remedy: "correct the labels, or delete the Sidecar".into(),
                related: Vec::new(),
            });
        }
    }
    findings
}

/// One finding for a group of Sidecars of which the first wins; none for a group of one.
fn several(sidecars: &[&Arc<Object<Sidecar>>], kind: FindingKind, what: &str) -> Option<Finding> {
    let (first, rest @ [_, ..]) = sidecars.split_first()? else {
        return None;
    };
    let related: Vec<ResourceRef> = rest.iter().map(|s| s.reference("Sidecar")).collect();
    let names: Vec<String> = related.iter().map(ToString::to_string).collect();
    Some(Finding {
        resource: Some(first.reference("Sidecar")),
        kind,
        field: "spec.workloadSelector".into(),
        message: format!(
            "{what}: it is the oldest and applies; without effect: {}",
            names.join(", ")
        ),
        remedy: "keep one of them, or give them selectors that do not overlap".into(),
        related,
    })
}
