//! Pods of this node as workloads: [which](select) are captured and why, [where](find) they are, and
//! the [workload entry](entry) that says so to resolve.

mod containers;
pub mod entry;
pub mod find;
pub mod select;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use anyhow::Result;
use k8s_openapi::api::core::v1::Pod;
use serde::Serialize;

use self::{
    entry::workload_entry,
    find::{Finder, Missing, Sandbox, Sought},
    select::{Capture, Decision, Policy, decide},
};
use super::pod_cgroup::canonical;
use crate::model::{
    Object,
    workload::{STATUS_ANNOTATION, WorkloadEntry},
};

/// Of static pods: the UID by which kubelet, its runtime and the CNI plugin know the pod.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";

/// The pods of this node, followed from one state to the next.
#[derive(Debug)]
pub struct Pods {
    policy: Policy,
    finder: Finder,
    /// What was handed over last, by `namespace/name`: what is the same stays the same allocation.
    entries: BTreeMap<String, Arc<Object<WorkloadEntry>>>,
}

/// What has come of the pods.
#[derive(Clone, Debug, Default)]
pub struct Update {
    /// Those that are captured, or have opted out and could be, in the order of (creation, name,
    /// namespace).
    pub workloads: Vec<Arc<Object<WorkloadEntry>>>,
    /// What was decided of every pod.
    pub told: Vec<Told>,
}

/// What was decided of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Told {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID, as the API server has it.
    pub uid: String,
    /// What becomes of it, and why.
    #[serde(flatten)]
    pub decision: Decision,
    /// Why it cannot be attached yet: it is looked for again.
    pub missing: Option<Missing>,
    /// What kubelet knows it by: a static pod by another UID.
    #[serde(skip)]
    pub known_by: Vec<String>,
    /// What [`STATUS_ANNOTATION`] says of it.
    #[serde(skip)]
    pub shown: Option<String>,
}

impl Told {
    /// Whether kubelet knows it by this UID.
    #[must_use]
    pub fn is_known_by(&self, uid: &str) -> bool {
        self.known_by.contains(&known_by(uid))
    }
}

impl Update {
    /// Whether a pod could not be found that is to be captured: look again.
    #[must_use]
    pub fn is_missing_any(&self) -> bool {
        self.told.iter().any(|pod| pod.missing.is_some())
    }
}

impl Pods {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(policy: Policy, finder: Finder) -> Self {
        Self {
            policy,
            finder,
            entries: BTreeMap::new(),
        }
    }

    /// What is to become of a pod.
    #[must_use]
    pub fn decide(&self, pod: &Pod, namespace_labels: &BTreeMap<String, String>) -> Decision {
        decide(pod, namespace_labels, &self.policy)
    }

    /// Notes what the CNI plugin says of a pod, for the next [`update`](Self::update).
    pub fn note(&mut self, uid: &str, sandbox: Sandbox) {
        self.finder.note(&known_by(uid), sandbox);
    }

    /// A sandbox of a pod ends, says the CNI plugin, with this network namespace (device and inode).
    pub fn forget(&mut self, uid: &str, netns: (u64, u64)) {
        self.finder.forget(&known_by(uid), netns);
    }

    /// Takes in all pods of this node, and the labels of their namespaces. To be called whenever one
    /// of them changes, and again for as long as [`Update::is_missing_any`].
    ///
    /// # Errors
    /// If /proc cannot be listed; what was found before is still known.
    pub fn update<'a>(
        &mut self,
        pods: impl IntoIterator<Item = &'a Arc<Pod>>,
        namespaces: &BTreeMap<String, BTreeMap<String, String>>,
    ) -> Result<Update> {
        let no_labels = BTreeMap::new();
        let decided: Vec<(&Arc<Pod>, Decision)> = pods
            .into_iter()
            .map(|pod| {
                let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                let labels = namespaces.get(namespace).unwrap_or(&no_labels);
                (pod, self.decide(pod, labels))
            })
            .collect();
        let is_wanted = |decision: &Decision| decision.capture != Capture::Left;
        let wanted = decided.iter().filter(|(_, decision)| is_wanted(decision));
        let sought: Vec<Sought> = wanted.map(|(pod, _)| sought(pod)).collect();
        let mut found = self.finder.find(&sought)?.into_iter();

        let mut update = Update::default();
        let mut entries = BTreeMap::new();
        for (pod, decision) in decided {
            let at = if is_wanted(&decision) {
                found.next()
            } else {
                None
            };
            let missing = match at {
                Some(Ok(at)) => {
                    let new = workload_entry(pod, &decision, &at);
                    let name = format!("{}/{}", new.meta.namespace, new.meta.name);
                    let entry = match self.entries.remove(&name) {
                        Some(before) if *before == new => before,
                        _ => Arc::new(new),
                    };
                    update.workloads.push(Arc::clone(&entry));
                    entries.insert(name, entry);
                    None
                }
                Some(Err(missing)) => Some(missing),
                None => None,
            };
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            let annotations = pod.metadata.annotations.as_ref();
            update.told.push(Told {
                namespace: text(&pod.metadata.namespace),
                name: text(&pod.metadata.name),
                uid: text(&pod.metadata.uid),
                decision,
                missing,
                known_by: uids(pod),
                shown: annotations.and_then(|all| all.get(STATUS_ANNOTATION).cloned()),
            });
        }
        self.entries = entries;
        update.workloads.sort_by(|a, b| a.order().cmp(&b.order()));
        Ok(update)
    }
}

/// The UIDs of a pod, in canonical form.
fn uids(pod: &Pod) -> Vec<String> {
    let metadata = &pod.metadata;
    let annotations = metadata.annotations.as_ref();
    let hash = annotations.and_then(|all| all.get(CONFIG_HASH));
    let uids = [metadata.uid.as_ref(), hash].into_iter().flatten();
    uids.map(|uid| known_by(uid)).collect()
}

/// What a pod is to be found by.
fn sought(pod: &Pod) -> Sought {
    let status = pod.status.as_ref();
    let first = status.and_then(|status| status.pod_ip.as_deref());
    let all = status.and_then(|status| status.pod_ips.as_ref());
    let all = all.into_iter().flatten().map(|ip| ip.ip.as_str());
    let mut addresses: Vec<IpAddr> = Vec::new();
    for ip in first
        .into_iter()
        .chain(all)
        .filter_map(|ip| ip.parse::<IpAddr>().ok())
    {
        if !addresses.contains(&ip.to_canonical()) {
            addresses.push(ip.to_canonical());
        }
    }
    let running = |name: &str| containers::running_id(pod, name).map(str::to_owned);
    let proxy = pod.spec.as_ref().and_then(containers::proxy);
    Sought {
        uids: uids(pod),
        addresses,
        application: containers::application(pod).and_then(running),
        proxy: proxy.and_then(|proxy| running(&proxy.name)),
    }
}

fn known_by(uid: &str) -> String {
    canonical(uid).unwrap_or_else(|| uid.to_owned())
}
