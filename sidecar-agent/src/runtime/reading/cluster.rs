//! What is known of the cluster, with the pods of this node as workloads.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result};

use crate::{
    dataplane::cgroup,
    model::Snapshot,
    observe::{health::Pending, status::ClusterStatus},
    runtime::Options,
    source::{
        kube::{Cluster, State},
        pods::{self, Pods, find::Finder},
    },
};

/// The agent is not ready when what it knows of the cluster is older than this: a server that
/// restarts, or a connection that is made again, is no matter.
const STALE: Duration = Duration::from_secs(10);

/// The host's.
const PROC: &str = "/proc";

/// The cluster, and what has become of its pods.
pub struct Clustered {
    cluster: Cluster,
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
        let nowhere = options.run_dir.join("nowhere").display().to_string();
        let finder = Finder::new(PROC.into(), cgroup::root()?, nowhere)?;
        let cluster = Cluster::watch(wanted.source.clone()).await;
        Ok(Some(Self {
            cluster: cluster.context("watching the cluster")?,
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

    /// Looks again for pods that were not found the last time; whether anything is different now.
    pub fn has_found_more(&mut self) -> bool {
        if self.problem.is_none() && !self.found.is_missing_any() {
            return false;
        }
        let Some(state) = self.cluster.state() else {
            return false;
        };
        let before = self.found.workloads.clone();
        self.find(&state);
        before != self.found.workloads
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
