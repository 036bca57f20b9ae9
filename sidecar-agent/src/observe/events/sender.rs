//! Sends what is to be told.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    runtime::events::{Event as KubeEvent, EventType, Recorder, Reporter},
};
use serde_json::json;
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use super::{
    CONTROLLER, Options, PodRef,
    news::{Event, Told},
};
use crate::model::workload::STATUS_ANNOTATION;

/// How long the API server may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often it is tried, with a pause that doubles. What cannot be told is logged, and let go: the
/// state is in `status`, and the next change is told anew.
const TRIES: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Most notes that are remembered.
const MOST_NOTES: usize = 4096;

/// What the agent was doing, as an event has it.
const ACTION: &str = "Capture";

/// Sends until nobody tells any more.
pub async fn send(client: Client, options: Options, mut told: mpsc::Receiver<Told>) {
    let mut recorders = Recorders::new(client.clone(), options.node.clone());
    while let Some(Told {
        pod,
        events,
        status,
    }) = told.recv().await
    {
        if options.events {
            for event in &events {
                let recorder = recorders.of(&pod, event);
                let (published, regarding) = (as_kube(event), reference(&pod));
                let publish = || recorder.publish(&published, &regarding);
                persist(&pod, event.reason.name(), publish).await;
            }
        }
        if options.annotation {
            let annotate = || annotate(&client, &pod, status.as_deref());
            persist(&pod, STATUS_ANNOTATION, annotate).await;
        }
    }
}

/// The recorder makes one event of several with the same reason, and keeps the note of the first: where
/// the note has changed, another recorder is asked.
struct Recorders {
    client: Client,
    reporter: Reporter,
    recorder: Recorder,
    /// The last note by the pod's UID and the reason.
    notes: BTreeMap<(String, &'static str), String>,
}

impl Recorders {
    fn new(client: Client, node: String) -> Self {
        let reporter = Reporter {
            controller: CONTROLLER.into(),
            instance: Some(node),
        };
        Self {
            recorder: Recorder::new(client.clone(), reporter.clone()),
            client,
            reporter,
            notes: BTreeMap::new(),
        }
    }

    fn of(&mut self, pod: &PodRef, event: &Event) -> &Recorder {
        let key = (pod.uid.clone(), event.reason.name());
        let before = self.notes.insert(key, event.note.clone());
        if before.is_some_and(|note| note != event.note) || self.notes.len() > MOST_NOTES {
            self.recorder = Recorder::new(self.client.clone(), self.reporter.clone());
            self.notes.clear();
        }
        &self.recorder
    }
}

/// Tries until it is done, or the pod is gone, or it makes no sense any more.
async fn persist<F>(pod: &PodRef, what: &str, mut attempt: impl FnMut() -> F)
where
    F: Future<Output = kube::Result<()>>,
{
    let mut pause = FIRST_PAUSE;
    for number in 1..=TRIES {
        let why = match timeout(PATIENCE, attempt()).await {
            Ok(Ok(())) => return,
            // The pod, or its namespace, has gone meanwhile, or another has its name.
            Ok(Err(kube::Error::Api(status)))
                if matches!(status.code, 404 | 409)
                    || status.message.contains("is being terminated") =>
            {
                return;
            }
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 401 | 403) => {
                let PodRef {
                    namespace, name, ..
                } = pod;
                tracing::warn!(
                    "telling {what} on pod {namespace}/{name}: {}; the agent's ServiceAccount lacks \
                     the right, which the chart's ClusterRole gives",
                    status.message
                );
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer in {PATIENCE:?}"),
        };
        if number == TRIES {
            let PodRef {
                namespace, name, ..
            } = pod;
            tracing::warn!("telling {what} on pod {namespace}/{name}: {why}; given up");
        } else {
            sleep(pause).await;
            pause *= 2;
        }
    }
}

fn as_kube(event: &Event) -> KubeEvent {
    KubeEvent {
        type_: if event.reason.is_well() {
            EventType::Normal
        } else {
            EventType::Warning
        },
        reason: event.reason.name().into(),
        note: Some(event.note.clone()),
        action: ACTION.into(),
        secondary: None,
    }
}

fn reference(pod: &PodRef) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(pod.namespace.clone()),
        name: Some(pod.name.clone()),
        uid: Some(pod.uid.clone()),
        ..ObjectReference::default()
    }
}

/// The UID in the patch makes sure that it is no other pod of that name. `None` takes the annotation away,
/// as a merge patch does with what is null.
async fn annotate(client: &Client, pod: &PodRef, status: Option<&str>) -> kube::Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    let patch = json!({"metadata": {
        "uid": pod.uid,
        "annotations": {STATUS_ANNOTATION: status},
    }});
    pods.patch_metadata(&pod.name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .map(drop)
}
