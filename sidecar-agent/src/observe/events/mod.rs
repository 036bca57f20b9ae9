//! Kubernetes Events on the pods of this node, for what an operator must know, and if asked for an
//! annotation with the state. Each agent tells of its own pods only: nobody is elected.
//!
//! [`news`] decides what is worth telling, [`sender`] tells it.

pub mod news;
mod sender;

use std::{collections::BTreeMap, time::Instant};

use kube::Client;
use tokio::sync::mpsc;

use self::news::{News, Told};
use super::status::WorkloadStatus;
use crate::model::diagnostic::Diagnostic;

/// The controller that events name, for `--field-selector reportingComponent=`.
pub const CONTROLLER: &str = "sidecar-agent.io/agent";

/// Most news that wait to be sent. What finds no room is told later, as it is then.
const QUEUE: usize = 256;

/// A pod, as events name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID: `kubectl describe` asks for the events of this one only.
    pub uid: String,
}

/// A pod of this node that may be told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// The pod.
    pub pod: PodRef,
    /// What [`STATUS_ANNOTATION`](crate::model::workload::STATUS_ANNOTATION) says there now.
    pub shown: Option<String>,
    /// Nothing of it is to be captured: then it has no state.
    pub left: bool,
}

/// How it is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The node's name, which events name as the instance.
    pub node: String,
    /// Events are sent.
    pub events: bool,
    /// [`STATUS_ANNOTATION`](crate::model::workload::STATUS_ANNOTATION) is written.
    pub annotation: bool,
}

/// Tells what changes. Never waits, and never fails: that the API server is away is logged.
pub struct Reporter {
    news: News,
    queue: mpsc::Sender<Told>,
}

impl Reporter {
    /// Starts the task that sends. Must be called within the runtime.
    #[must_use]
    pub fn start(client: Client, options: Options) -> Self {
        let (queue, told) = mpsc::channel(QUEUE);
        let news = News::new(options.annotation);
        tokio::spawn(sender::send(client, options, told));
        Self { news, queue }
    }

    /// Tells what has changed since the last call. `pods` has all pods of this node, by `namespace/name`,
    /// as the workloads among them are named. Call it when the node has settled, and at least every few seconds, as what
    /// was postponed is told by a later call.
    ///
    /// The first call is where changes begin: of what is as it should be then there are no events. The
    /// annotation is made to tell it all the same, whatever an agent before has left there.
    pub fn tell(
        &mut self,
        workloads: &[WorkloadStatus],
        diagnostics: &[Diagnostic],
        pods: &BTreeMap<String, Pod>,
    ) {
        let queue = &self.queue;
        let subjects = news::subjects(workloads, diagnostics, pods);
        // Whoever has found no room is as before to us.
        self.news.look(subjects, Instant::now(), |told| {
            queue.try_send(told).is_ok()
        });
    }
}
