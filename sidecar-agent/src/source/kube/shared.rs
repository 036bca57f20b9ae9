//! What is known of the cluster, written by the watches, read by the main loop.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;

use super::{
    document::Document,
    table::{Change, Table},
    watched::Watched,
};
use crate::observe::status::{ClusterKind, ClusterStatus};

/// The labels of a namespace.
pub type Labels = BTreeMap<String, String>;

/// What is known of the cluster at one moment.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// The resources, in a fixed order.
    pub documents: Vec<Arc<Document>>,
    /// The pods of this node, without `managedFields`.
    pub pods: Vec<Arc<Pod>>,
    /// The labels of all namespaces.
    pub namespaces: BTreeMap<String, Labels>,
}

/// The objects of one watch.
#[derive(Debug)]
enum Objects {
    Documents(Table<Arc<Document>>),
    Pods(Table<Arc<Pod>>),
    Namespaces(Table<Labels>),
}

/// What is done with the table of a watch, whatever is in it.
macro_rules! each {
    ($objects:expr, $table:ident => $do:expr) => {
        match $objects {
            Objects::Documents($table) => $do,
            Objects::Pods($table) => $do,
            Objects::Namespaces($table) => $do,
        }
    };
}

/// One watch.
#[derive(Debug)]
struct Watch {
    objects: Objects,
    /// Where the API server has it; `None`: nowhere, or not known yet.
    resource: Option<String>,
    /// Since when it is not up to date, and why; `None`: it is.
    failing: Option<(Instant, String)>,
}

/// An object as it is kept.
#[derive(Debug)]
pub(super) enum Kept {
    Document(Arc<Document>),
    Pod(Arc<Pod>),
    Namespace(Labels),
}

impl Kept {
    fn document(self) -> Option<Arc<Document>> {
        match self {
            Self::Document(document) => Some(document),
            _ => None,
        }
    }

    fn pod(self) -> Option<Arc<Pod>> {
        match self {
            Self::Pod(pod) => Some(pod),
            _ => None,
        }
    }

    fn namespace(self) -> Option<Labels> {
        match self {
            Self::Namespace(labels) => Some(labels),
            _ => None,
        }
    }
}

/// What is known of the cluster.
#[derive(Debug)]
pub(super) struct Shared {
    watches: Mutex<BTreeMap<Watched, Watch>>,
    changes: watch::Sender<()>,
}

impl Shared {
    /// Nothing is known.
    pub fn new() -> Self {
        let started = Instant::now();
        let watch = |watched| {
            let objects = match watched {
                Watched::Pod => Objects::Pods(Table::default()),
                Watched::Namespace => Objects::Namespaces(Table::default()),
                _ => Objects::Documents(Table::default()),
            };
            let failing = Some((started, "its first list has not ended yet".to_owned()));
            (
                watched,
                Watch {
                    objects,
                    resource: None,
                    failing,
                },
            )
        };
        Self {
            watches: Mutex::new(Watched::ALL.map(watch).into()),
            changes: watch::Sender::default(),
        }
    }

    /// Notices changes of what is known.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// A watch tells something.
    pub fn apply(&self, of: Watched, change: Change<Kept>) {
        self.update(of, |watch| {
            let is_end = matches!(change, Change::End);
            let changed = match &mut watch.objects {
                Objects::Documents(table) => apply(table, change, Kept::document),
                Objects::Pods(table) => apply(table, change, Kept::pod),
                Objects::Namespaces(table) => apply(table, change, Kept::namespace),
            };
            if is_end {
                watch.recovered(of);
            }
            changed
        });
    }

    /// The API server has it here.
    pub fn found(&self, of: Watched, resource: String) {
        self.update(of, |watch| {
            watch.resource = Some(resource);
            false
        });
    }

    /// The API server does not have it. What is known of it goes if `clear`, or nothing is.
    pub fn absent(&self, of: Watched, clear: bool) {
        self.update(of, |watch| {
            watch.resource = None;
            let is_complete = each!(&watch.objects, table => table.is_complete());
            watch.recovered(of);
            if is_complete && !clear {
                return false;
            }
            each!(&mut watch.objects, table => table.clear())
        });
    }

    /// It cannot be watched.
    pub fn failed(&self, of: Watched, why: String) {
        self.update(of, |watch| {
            let before = watch.failing.take();
            let (since, known) = before.unwrap_or_else(|| (Instant::now(), String::new()));
            if known != why {
                tracing::warn!(
                    kind = of.kind(),
                    "the cluster's state is not up to date: {why}"
                );
            }
            watch.failing = Some((since, why));
            false
        });
    }

    /// The API server has begun to answer a watch: from where the last one ended, unless a list is
    /// missing.
    pub fn answered(&self, of: Watched) {
        self.update(of, |watch| {
            let listed = each!(&watch.objects, table => table.is_complete() && !table.is_listing());
            if listed {
                watch.recovered(of);
            }
            false
        });
    }

    /// Whether it is known of everything what there is.
    pub fn is_complete(&self) -> bool {
        let watches = self.lock();
        let mut all = watches.values();
        all.all(|watch| each!(&watch.objects, table => table.is_complete()))
    }

    /// What is known now.
    pub fn state(&self) -> State {
        let mut state = State::default();
        for watch in self.lock().values() {
            match &watch.objects {
                Objects::Documents(table) => {
                    let documents = table.iter().map(|(_, document)| Arc::clone(document));
                    state.documents.extend(documents);
                }
                Objects::Pods(table) => {
                    state
                        .pods
                        .extend(table.iter().map(|(_, pod)| Arc::clone(pod)));
                }
                Objects::Namespaces(table) => {
                    let labels = table
                        .iter()
                        .map(|((_, name), labels)| (name.clone(), labels.clone()));
                    state.namespaces.extend(labels);
                }
            }
        }
        state
    }

    /// A pod of this node, as far as is known now.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let key = (namespace.to_owned(), name.to_owned());
        self.lock().values().find_map(|watch| match &watch.objects {
            Objects::Pods(table) => table.get(&key).cloned(),
            _ => None,
        })
    }

    /// How it goes.
    pub fn status(&self) -> ClusterStatus {
        let watches = self.lock();
        let kinds = watches.iter().map(|(of, watch)| ClusterKind {
            kind: format!("{of:?}"),
            resource: watch.resource.clone(),
            objects: each!(&watch.objects, table => table.iter().len()),
            listed: each!(&watch.objects, table => table.is_complete()),
            problem: watch.failing.as_ref().map(|(_, why)| why.clone()),
        });
        let kinds: Vec<ClusterKind> = kinds.collect();
        let since = watches
            .values()
            .filter_map(|watch| watch.failing.as_ref().map(|(since, _)| *since))
            .min();
        ClusterStatus {
            listed: kinds.iter().all(|kind| kind.listed),
            stale_seconds: since.map(|since| since.elapsed().as_secs_f64()),
            kinds,
            pods: Vec::new(),
        }
    }

    /// Since how long anything is not up to date, and why; `None`: everything is.
    pub fn stale(&self) -> Option<(Duration, String)> {
        let watches = self.lock();
        let failing = watches.iter().filter_map(|(of, watch)| {
            let (since, why) = watch.failing.as_ref()?;
            Some((*since, format!("{of:?}: {why}")))
        });
        let (since, why) = failing.min()?;
        Some((since.elapsed(), why))
    }

    fn update(&self, of: Watched, change: impl FnOnce(&mut Watch) -> bool) {
        let changed = self.lock().get_mut(&of).is_some_and(change);
        if changed {
            self.changes.send_replace(());
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Watched, Watch>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    /// It is up to date.
    fn recovered(&mut self, of: Watched) {
        if let Some((since, _)) = self.failing.take() {
            tracing::info!(kind = of.kind(), after = ?since.elapsed(), "the cluster's state is up to date");
        }
    }
}

fn apply<T: PartialEq>(
    table: &mut Table<T>,
    change: Change<Kept>,
    of: impl FnOnce(Kept) -> Option<T>,
) -> bool {
    change.of(of).is_some_and(|change| table.apply(change))
}
