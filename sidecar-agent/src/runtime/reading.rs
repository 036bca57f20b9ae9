//! What the configuration says: files, and what is known of the cluster, read as a whole.

mod cluster;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;

use self::cluster::Clustered;
use super::{Options, REFRESH, node::Node, plugins::Plugins};
use crate::{
    backoff::Backoff,
    cni::server::Call,
    observe::{health::Pending, status::ClusterStatus},
    source::{
        files::{self, File, Store, Update, Watch},
        kube::Document,
    },
};

/// When files are read again that could not be.
const UNREAD: Backoff = Backoff::new(REFRESH, Duration::from_secs(30));

/// Reads it, and keeps what was last good.
pub struct Reading {
    paths: Vec<PathBuf>,
    cluster: Option<Clustered>,
    store: Store,
    unread: Backoff,
}

impl Reading {
    /// Of what the agent was started with. The cluster is watched from now on.
    ///
    /// # Errors
    /// If it is not known where the cluster's API server is.
    pub async fn start(options: &Options) -> Result<Self> {
        Ok(Self {
            paths: [&options.config, &options.mesh_config]
                .into_iter()
                .flatten()
                .cloned()
                .collect(),
            cluster: Clustered::start(options).await?,
            store: Store::new(options.compat),
            unread: UNREAD,
        })
    }

    /// Notices that files change.
    pub fn watch(&self) -> Watch {
        files::watch(&self.paths)
    }

    /// Waits until the cluster has changed.
    pub async fn changed(&mut self) {
        match &mut self.cluster {
            Some(cluster) => cluster.changed().await,
            None => std::future::pending().await,
        }
    }

    /// Waits until there is something to [`read`](Self::read).
    pub async fn is_listed(&mut self) {
        while let Some(cluster) = &mut self.cluster
            && !cluster.is_listed()
        {
            cluster.changed().await;
        }
    }

    /// Reads all of it; `None` as long as not everything is known that is in the cluster.
    pub fn read(&mut self) -> Option<Update> {
        let mut files = files::read_changed(&self.paths, |path| self.store.version(path));
        let Some(cluster) = &mut self.cluster else {
            return Some(self.store.update(files));
        };
        let state = cluster.state()?;
        // After files: what is said on the node counts for more.
        let file =
            |of: &Arc<Document>| -> File { (of.name.as_ref().into(), Ok(of.text.clone().into())) };
        files.extend(state.documents.iter().map(file));
        let mut update = self.store.update(files);
        cluster.add_pods(&state, &mut update.snapshot);
        Some(update)
    }

    /// Reads it again where something could not be read or found the last time, as nobody tells when
    /// it can be: `None` if that is not so, or it still cannot be.
    pub fn read_again(&mut self, last: &Update) -> Option<Update> {
        let found = self.cluster.as_mut().is_some_and(Clustered::has_found_more);
        let now = Instant::now();
        let is_due = last.unread && self.unread.left(now).is_zero();
        if !is_due && !found {
            return None;
        }
        let update = self.read()?;
        if update.unread {
            self.unread.fail(now);
            return found.then_some(update);
        }
        self.unread.reset();
        Some(update)
    }

    /// Whether pods that are to be captured have not been found yet.
    pub fn is_missing_any(&self) -> bool {
        self.cluster.as_ref().is_some_and(Clustered::is_missing_any)
    }

    /// Tells in the cluster what has become of its pods.
    pub fn tell(&mut self, node: &Node) {
        if let Some(cluster) = &mut self.cluster {
            cluster.tell(node);
        }
    }

    /// How it goes with the cluster; `None`: it is no source.
    pub fn cluster(&self) -> Option<ClusterStatus> {
        self.cluster.as_ref().map(Clustered::status)
    }

    /// Takes in what a CNI plugin asks; `None`: only that it is time to look again. Whether there is
    /// something to [`read`](Self::read) now that one waits for.
    pub fn is_asked(&mut self, call: Option<Call>, plugins: &mut Plugins) -> bool {
        let Some(cluster) = &mut self.cluster else {
            return false;
        };
        if let Some(call) = call {
            cluster.take(call, plugins);
        }
        cluster.has_heard_more(plugins)
    }

    /// Answers CNI plugins that wait, as far as they can be.
    pub fn answer(&self, plugins: &mut Plugins, node: &Node) {
        if let Some(cluster) = &self.cluster {
            plugins.answer(|pod| cluster.standing(pod, node));
        }
    }

    /// That what is known of the cluster is too old.
    pub fn stale(&self) -> Option<Pending> {
        self.cluster.as_ref()?.stale()
    }
}
