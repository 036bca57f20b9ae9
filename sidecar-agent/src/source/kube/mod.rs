//! The Kubernetes API as a source: lists and watches of what decides about this node, kept as
//! documents that are read as those in files are.
//!
//! What was known stays when the API server is gone, and while it is listed anew; how old it is,
//! is told.

mod client;
mod document;
mod follow;
pub mod rbac;
mod shared;
mod table;
mod watched;

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Result;
use k8s_openapi::api::core::v1::Pod;
use kube::{Client, Config};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};

use self::shared::Shared;
pub use self::{
    document::Document,
    shared::{Labels, State},
};
use crate::observe::status::ClusterStatus;

/// A burst of changes is over when nothing changed for so long.
const QUIET: Duration = Duration::from_millis(10);
/// A burst is reported after so long even if it goes on.
const LONGEST: Duration = Duration::from_millis(100);
/// Changes are reported no more often than this: in a large cluster something always changes.
const PACE: Duration = Duration::from_millis(200);

/// Which cluster, and what of it is ours.
#[derive(Clone, Debug)]
pub struct Options {
    /// The file that says where the API server is; `None`: we are a pod of its cluster.
    pub kubeconfig: Option<PathBuf>,
    /// This node's name.
    pub node_name: String,
    /// Namespace and name of the `ConfigMap` with the mesh configuration.
    pub mesh_config_map: (String, String),
}

/// The cluster, being watched. Dropping it ends that.
#[derive(Debug)]
pub struct Cluster {
    config: Config,
    shared: Arc<Shared>,
    changes: watch::Receiver<()>,
    _tasks: JoinSet<()>,
}

impl Cluster {
    /// Begins to watch. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// If it is not known where the API server is, or who we are. That it cannot be reached is no
    /// error.
    pub async fn watch(options: Options) -> Result<Self> {
        let config = client::config(&options).await?;
        let options = Arc::new(options);
        let shared = Arc::new(Shared::new());
        let (report, changes) = watch::channel(());
        let mut tasks = JoinSet::new();
        tasks.spawn(bursts(shared.changes(), report));
        for of in watched::Watched::ALL {
            let (options, shared) = (Arc::clone(&options), Arc::clone(&shared));
            tasks.spawn(follow::follow(of, config.clone(), options, shared));
        }
        Ok(Self {
            config,
            shared,
            changes,
            _tasks: tasks,
        })
    }

    /// A client for other purposes.
    ///
    /// # Errors
    /// If certificates or credentials cannot be used.
    pub fn client(&self) -> Result<Client> {
        client::client(&self.config, Arc::new(|| ()))
    }

    /// Waits until something changed since the last call. A burst of changes is one.
    pub async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            // Only if the task is gone, which only dropping this ends.
            std::future::pending::<()>().await;
        }
    }

    /// Whether everything was listed once.
    #[must_use]
    pub fn is_listed(&self) -> bool {
        self.shared.is_complete()
    }

    /// What is known; `None` as long as not everything was listed once: what is not known yet
    /// must not be taken for absent.
    #[must_use]
    pub fn state(&self) -> Option<State> {
        self.shared.is_complete().then(|| self.shared.state())
    }

    /// A pod of this node, as far as is known now.
    #[must_use]
    pub fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.shared.pod(namespace, name)
    }

    /// How it goes.
    #[must_use]
    pub fn status(&self) -> ClusterStatus {
        self.shared.status()
    }

    /// Since how long something is not up to date, and why; `None`: everything is.
    #[must_use]
    pub fn stale(&self) -> Option<(Duration, String)> {
        self.shared.stale()
    }
}

/// Reports a burst of changes as one.
async fn bursts(mut changes: watch::Receiver<()>, report: watch::Sender<()>) {
    while changes.changed().await.is_ok() {
        let end = Instant::now() + LONGEST;
        while let Ok(Ok(())) = timeout_at(end.min(Instant::now() + QUIET), changes.changed()).await
        {
        }
        report.send_replace(());
        sleep(PACE).await;
    }
}
