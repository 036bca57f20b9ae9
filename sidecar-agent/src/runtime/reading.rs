//! What the configuration says: files, and what is known of the cluster, read as a whole.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{Options, REFRESH};
use crate::{
    backoff::Backoff,
    observe::{health::Pending, status::ClusterStatus},
    source::{
        files::{self, Store, Update, Watch},
        kube::{Cluster, State},
    },
};

/// When files are read again that could not be.
const UNREAD: Backoff = Backoff::new(REFRESH, Duration::from_secs(30));
/// The agent is not ready when what it knows of the cluster is older than this: a server that
/// restarts, or a connection that is made again, is no matter.
const STALE: Duration = Duration::from_secs(10);

/// Reads it, and keeps what was last good.
pub struct Reading {
    paths: Vec<PathBuf>,
    cluster: Option<Cluster>,
    store: Store,
    unread: Backoff,
}

impl Reading {
    /// Of what the agent was started with. The cluster is watched from now on.
    ///
    /// # Errors
    /// If it is not known where the cluster's API server is.
    pub async fn start(options: &Options) -> Result<Self> {
        let cluster = match &options.kube {
            Some(kube) => {
                let watch = Cluster::watch(kube.clone()).await;
                Some(watch.context("watching the cluster")?)
            }
            None => None,
        };
        Ok(Self {
            paths: [&options.config, &options.mesh_config]
                .into_iter()
                .flatten()
                .cloned()
                .collect(),
            cluster,
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
            && cluster.state().is_none()
        {
            cluster.changed().await;
        }
    }

    /// Reads all of it; `None` as long as not everything is known that is in the cluster.
    pub fn read(&mut self) -> Option<Update> {
        let cluster = match &self.cluster {
            Some(cluster) => cluster.state()?,
            None => State::default(),
        };
        let mut files = files::read(&self.paths);
        // After files: what is said on the node counts for more.
        let documents = cluster.documents.iter();
        files.extend(documents.map(|of| (PathBuf::from(&*of.name), Ok(String::from(&*of.text)))));
        Some(self.store.update(files))
    }

    /// Reads it again where something could not be read the last time, as nobody tells when it can
    /// be: `None` if that is not so, or it still cannot be.
    pub fn read_again(&mut self, last: &Update) -> Option<Update> {
        let now = Instant::now();
        if !last.unread || !self.unread.left(now).is_zero() {
            return None;
        }
        let update = self.read()?;
        if update.unread {
            self.unread.fail(now);
            return None;
        }
        self.unread.reset();
        Some(update)
    }

    /// How it goes with the cluster; `None`: it is no source.
    pub fn cluster(&self) -> Option<ClusterStatus> {
        self.cluster.as_ref().map(Cluster::status)
    }

    /// What is known of the cluster, and is too old.
    pub fn stale(&self) -> Option<Pending> {
        let cluster = self.cluster.as_ref()?;
        let (age, why) = cluster.stale()?;
        (age > STALE || cluster.state().is_none()).then(|| Pending {
            what: "cluster".to_owned(),
            why: format!("not up to date for {} s: {why}", age.as_secs()),
        })
    }
}
