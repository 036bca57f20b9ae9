//! What is known of the cluster, with the pods of this node as workloads.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result};

use crate::{
    cni::{server::Call, wire::PodRef},
    dataplane::cgroup,
    model::Snapshot,
    observe::{
        events::{self, Reporter},
        health::Pending,
        status::ClusterStatus,
    },
    runtime::{
        Options,
        node::Node,
        plugins::{Plugins, Standing},
    },
    source::{
        kube::{Cluster, State},
        pods::{
            self, Pods,
            find::{self, Finder},
            select::Capture,
        },
    },
};

/// The agent is not ready when what it knows of the cluster is older than this: a server that
/// restarts, or a connection that is made again, is no matter.
const STALE: Duration = Duration::from_secs(10);

/// Whether what was told is of this pod, and not of one before it with the same name.
fn is(told: &pods::Told, pod: &PodRef) -> bool {
    told.namespace == pod.namespace
        && told.name == pod.name
        && pod.uid.as_ref().is_none_or(|uid| told.is_known_by(uid))
}

/// The cluster, and what has become of its pods.
pub struct Clustered {
    cluster: Cluster,
    reporter: Option<Reporter>,
    pods: Pods,
    found: pods::Update,
    /// Why pods could not be looked for.
    problem: Option<String>,
}

impl Clustered {
    /// Watches it, if it is a source.
    ///
    /// # Errors
    /// If it is not known where its API server is, or this node does not tell where pods are.
    pub async fn start(options: &Options) -> Result<Option<Self>> {
        let Some(wanted) = &options.cluster else {
            return Ok(None);
        };
        let nowhere = find::nowhere(&options.run_dir).display().to_string();
        if cgroup::shows_only_us() {
            tracing::warn!(
                "no pod can be found: of cgroups only this container's own are to be seen here; mount the \
                 host's /sys/fs/cgroup into it, as the chart does"
            );
        }
        let finder = Finder::new(wanted.host_proc.clone(), cgroup::root()?, nowhere)?;
        let cluster = Cluster::watch(wanted.source.clone()).await;
        let cluster = cluster.context("watching the cluster")?;
        let start = |told: &events::Options| Ok(Reporter::start(cluster.client()?, told.clone()));
        let reporter: Result<_> = wanted.told.as_ref().map(start).transpose();
        Ok(Some(Self {
            reporter: reporter.context("preparing events on pods")?,
            cluster,
            pods: Pods::new(wanted.pods.clone(), finder),
            found: pods::Update::default(),
            problem: None,
        }))
    }

    /// Waits until it has changed.
    pub async fn changed(&mut self) {
        self.cluster.changed().await;
    }

    /// Whether everything was listed once.
    pub fn is_listed(&self) -> bool {
        self.cluster.is_listed()
    }

    /// What is known; `None` as long as not everything was listed once.
    pub fn state(&self) -> Option<State> {
        self.cluster.state()
    }

    /// Adds the pods of this node, where they were found, to the workloads of other resources; those
    /// count for more.
    pub fn add_pods(&mut self, state: &State, snapshot: &mut Snapshot) {
        self.find(state);
        let name = |of: &crate::model::ObjectMeta| (of.namespace.clone(), of.name.clone());
        let workloads = &mut snapshot.workloads;
        let known: BTreeSet<_> = workloads.iter().map(|of| name(&of.meta)).collect();
        let found = self.found.workloads.iter();
        workloads.extend(found.filter(|of| !known.contains(&name(&of.meta))).cloned());
        workloads.sort_by(|a, b| a.order().cmp(&b.order()));
    }

    /// Whether pods that are to be captured have not been found yet.
    pub fn is_missing_any(&self) -> bool {
        self.problem.is_some() || self.found.is_missing_any()
    }

    /// Looks again for pods that were not found the last time; whether anything is different now.
    pub fn has_found_more(&mut self) -> bool {
        if !self.is_missing_any() {
            return false;
        }
        let Some(state) = self.cluster.state() else {
            return false;
        };
        let before = self.found.workloads.clone();
        self.find(&state);
        before != self.found.workloads
    }

    /// Takes in what a CNI plugin asks.
    pub fn take(&mut self, call: Call, plugins: &mut Plugins) {
        plugins.take(call, &mut self.pods);
    }

    /// Whether anything is known now that CNI plugins wait for.
    pub fn has_heard_more(&mut self, plugins: &mut Plugins) -> bool {
        if !plugins.is_waited_for() {
            return false;
        }
        let cluster = &self.cluster;
        let uid = |pod: &PodRef| cluster.pod(&pod.namespace, &pod.name)?.metadata.uid.clone();
        let noted = plugins.note(&mut self.pods, uid);
        let told = |pod: &PodRef| self.found.told.iter().any(|told| is(told, pod));
        let is_new = |pod: &PodRef| !told(pod) && uid(pod).is_some();
        let heard = plugins.waiting().any(is_new);
        noted || heard || self.has_found_more()
    }

    /// How it stands with a pod that a CNI plugin asks for.
    pub fn standing(&self, pod: &PodRef, node: &Node) -> Standing {
        let Some(told) = self.found.told.iter().find(|told| is(told, pod)) else {
            let why = if self.is_listed() {
                "the agent knows no such pod yet from the API server"
            } else {
                "the agent has not read the cluster yet"
            };
            return Standing::NotYet(why.to_owned());
        };
        if told.decision.capture == Capture::Left {
            return Standing::Left(told.decision.reason.text().to_owned());
        }
        if let Some(missing) = told.missing {
            return Standing::NotYet(missing.to_string());
        }
        let name = format!("{}/{}", told.namespace, told.name);
        let standing = node.standing(&name);
        standing.unwrap_or_else(|| Standing::NotYet("it is on its way".to_owned()))
    }

    fn find(&mut self, state: &State) {
        match self.pods.update(&state.pods, &state.namespaces) {
            Ok(found) => {
                self.found = found;
                self.problem = None;
            }
            Err(error) => {
                let problem = format!("{error:#}");
                if self.problem.as_ref() != Some(&problem) {
                    tracing::warn!("looking for pods: {problem}");
                }
                self.problem = Some(problem);
            }
        }
    }

    /// Tells in the cluster what has become of its pods.
    pub fn tell(&mut self, node: &Node) {
        let Some(reporter) = &mut self.reporter else {
            return;
        };
        let pod = |told: &pods::Told| {
            let pod = events::PodRef {
                namespace: told.namespace.clone(),
                name: told.name.clone(),
                uid: told.uid.clone(),
            };
            let pod = events::Pod {
                pod,
                shown: told.shown.clone(),
                left: told.decision.capture == Capture::Left,
            };
            (format!("{}/{}", told.namespace, told.name), pod)
        };
        let pods = self.found.told.iter().map(pod).collect();
        reporter.tell(&node.workloads(), node.findings(), &pods);
    }

    /// How it goes.
    pub fn status(&self) -> ClusterStatus {
        let told = self.found.told.iter();
        ClusterStatus {
            pods: told
                .filter_map(|pod| serde_json::to_value(pod).ok())
                .collect(),
            ..self.cluster.status()
        }
    }

    /// That what is known is too old.
    pub fn stale(&self) -> Option<Pending> {
        let (age, why) = self.cluster.stale()?;
        (age > STALE || !self.is_listed()).then(|| Pending {
            what: "cluster".to_owned(),
            why: format!("not up to date for {} s: {why}", age.as_secs()),
        })
    }
}
