//! Which workloads a selector selects.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use foldhash::fast::RandomState;

use crate::{
    model::{Object, workload::WorkloadEntry},
    resolve::select,
};

/// Namespace, and a label's key and value.
type Label<'a> = (&'a str, &'a str, &'a str);

/// Workloads by namespace and label, so that a selector does not have to try all of them.
pub(super) struct WorkloadIndex<'a> {
    by_label: HashMap<Label<'a>, Vec<&'a Arc<Object<WorkloadEntry>>>, RandomState>,
}

impl<'a> WorkloadIndex<'a> {
    pub fn new(workloads: &'a [Arc<Object<WorkloadEntry>>]) -> Self {
        let mut by_label: HashMap<_, Vec<_>, _> = HashMap::default();
        for workload in workloads {
            for (key, value) in workload.meta.labels.iter().chain(&workload.spec.labels) {
                let list: &mut Vec<_> = by_label
                    .entry((
                        workload.meta.namespace.as_str(),
                        key.as_str(),
                        value.as_str(),
                    ))
                    .or_default();
                list.push(workload);
            }
        }
        Self { by_label }
    }

    /// Workloads of `namespace` with all these labels, `pods` among them or not; an empty selector
    /// selects none.
    pub fn selected(
        &self,
        namespace: &str,
        selector: &BTreeMap<String, String>,
        pods: bool,
    ) -> Vec<Arc<Object<WorkloadEntry>>> {
        let candidates = selector
            .iter()
            .map(|(key, value)| {
                self.by_label
                    .get(&(namespace, key.as_str(), value.as_str()))
                    .map_or(&[][..], Vec::as_slice)
            })
            .min_by_key(|list| list.len())
            .unwrap_or_default();
        candidates
            .iter()
            .filter(|workload| pods || !workload.spec.is_pod)
            .filter(|workload| select::matches(selector, &labels(workload)))
            .map(|workload| Arc::clone(workload))
            .collect()
    }
}

/// A workload's labels: those of its spec over those of its metadata.
#[must_use]
pub fn labels(workload: &Object<WorkloadEntry>) -> BTreeMap<String, String> {
    let mut labels = workload.meta.labels.clone();
    labels.extend(
        workload
            .spec
            .labels
            .iter()
            .map(|(k, v)| (k.clone(), v.clone())),
    );
    labels
}
