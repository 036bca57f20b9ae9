//! Which Sidecar applies.

use std::collections::BTreeMap;

use sidecar_agent::model::{Object, Snapshot, sidecar::Sidecar};

/// The oldest of the workload's namespace whose selector matches, else the oldest there without
/// a selector, else the oldest of the root namespace without one.
pub fn select<'a>(
    snapshot: &'a Snapshot,
    namespace: &str,
    labels: &BTreeMap<String, String>,
) -> Option<&'a Object<Sidecar>> {
    let oldest = |namespace: &str, applies: &dyn Fn(&Sidecar) -> bool| {
        snapshot
            .sidecars
            .iter()
            .map(|sidecar| &**sidecar)
            .filter(|s| s.meta.namespace == namespace && applies(&s.spec))
            .min_by_key(|s| (s.meta.created, &s.meta.name))
    };
    let selected = |sidecar: &Sidecar| {
        let wanted = sidecar.selector.as_ref();
        wanted.is_some_and(|wanted| {
            wanted
                .iter()
                .all(|(key, value)| labels.get(key) == Some(value))
        })
    };
    let without = |sidecar: &Sidecar| sidecar.selector.is_none();
    oldest(namespace, &selected)
        .or_else(|| oldest(namespace, &without))
        .or_else(|| oldest(&snapshot.mesh.root_namespace, &without))
}
