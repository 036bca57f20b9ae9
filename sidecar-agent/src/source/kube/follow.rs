//! The watches. Whatever happens to one of them, it goes on.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    Api, Client, Config, ResourceExt as _,
    core::{ApiResource, DynamicObject, PartialObjectMeta},
    runtime::watcher::{self, Event, watcher},
};
use tokio::time::sleep;

use super::{
    Options, client,
    document::Document,
    shared::{Kept, Shared},
    table::Change,
    watched::{Watched, is_ready},
};
use crate::backoff::Backoff;

/// When it is looked again for what the API server does not have.
const ABSENT: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
/// When it is looked again for a newer version than the one that is followed.
const NEWER: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_mins(10));
/// When it is tried again to find out what it has.
const RETRY: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
/// A watch that has lasted so long was no failure.
const LASTING: Duration = Duration::from_mins(1);
/// What was there goes with its kind when that is gone for so long.
const GONE: Duration = Duration::from_mins(1);

/// Follows one kind for as long as the agent lives.
pub(super) async fn follow(
    of: Watched,
    config: Config,
    options: Arc<Options>,
    shared: Arc<Shared>,
) {
    let on_watch = {
        let shared = Arc::clone(&shared);
        Arc::new(move || shared.answered(of))
    };
    let client = loop {
        match client::client(&config, on_watch.clone()) {
            Ok(client) => break client,
            Err(error) => {
                shared.failed(of, format!("{error:#}"));
                sleep(Duration::from_secs(5)).await;
            }
        }
    };
    let follower = Follower {
        of,
        client,
        options,
        shared,
    };
    let (mut retry, mut absent) = (RETRY, ABSENT);
    let mut gone: Option<Instant> = None;
    loop {
        match follower.find().await {
            Ok(Some(resource)) => {
                (gone, absent) = (None, ABSENT);
                follower.shared.found(of, name(&resource));
                let began = Instant::now();
                tokio::select! {
                    () = follower.watch(&resource) => {}
                    () = follower.newer_is_served(&resource) => {}
                }
                if began.elapsed() > LASTING {
                    retry = RETRY;
                }
                // Where it is found, and cannot be watched, not in a circle without a pause.
                pause(&mut retry).await;
            }
            Ok(None) => {
                retry = RETRY;
                let since = *gone.get_or_insert_with(Instant::now);
                follower.shared.absent(of, since.elapsed() >= GONE);
                pause(&mut absent).await;
            }
            Err(error) => {
                gone = None;
                follower.failed(&error);
                pause(&mut retry).await;
            }
        }
    }
}

async fn pause(backoff: &mut Backoff) {
    let now = Instant::now();
    backoff.fail(now);
    let pause = backoff.left(now);
    // The agents of all nodes lose their server at the same time.
    let random = RandomState::new().build_hasher().finish() % 1024;
    let random = u32::try_from(random).unwrap_or_default();
    sleep(pause / 2 + pause / 2048 * random).await;
}

fn name(resource: &ApiResource) -> String {
    format!("{}.{}", resource.plural, resource.api_version)
}

struct Follower {
    of: Watched,
    client: Client,
    options: Arc<Options>,
    shared: Arc<Shared>,
}

impl Follower {
    /// Where the API server has it. That it has it nowhere is believed of one that is ready, as it
    /// must be before and after the question.
    async fn find(&self) -> kube::Result<Option<ApiResource>> {
        if let Some(found) = self.of.find(&self.client).await? {
            return Ok(Some(found));
        }
        if !is_ready(&self.client).await? {
            let message = "the API server is not ready";
            return Err(kube::Error::Service(message.into()));
        }
        self.of.find(&self.client).await
    }

    /// Returns once the API server has it where it is followed sooner than at `resource`. The
    /// versions of a CRD come one after the other, and with an upgrade of the mesh or the cluster.
    async fn newer_is_served(&self, resource: &ApiResource) {
        if self.of.is_newest(resource) {
            return std::future::pending().await;
        }
        let mut backoff = NEWER;
        loop {
            pause(&mut backoff).await;
            if let Ok(Some(found)) = self.of.find(&self.client).await
                && found != *resource
            {
                return;
            }
        }
    }

    fn failed(&self, error: &dyn std::error::Error) {
        let mut why = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !why.contains(&cause_text) {
                why = format!("{why}: {cause_text}");
            }
            source = cause.source();
        }
        self.shared.failed(self.of, why);
    }

    /// Watches until it has to be looked again where the kind is.
    async fn watch(&self, resource: &ApiResource) {
        let client = self.client.clone();
        let (namespace, name) = &self.options.mesh_config_map;
        let config = self.of.config(&self.options.node_name, name);
        match self.of {
            Watched::Pod => {
                let keep = |mut pod: Pod| {
                    pod.metadata.managed_fields = None;
                    Some(Kept::Pod(Arc::new(pod)))
                };
                self.events(Api::<Pod>::all(client), config, keep).await;
            }
            Watched::Namespace => {
                let keep = |namespace: PartialObjectMeta<Namespace>| {
                    let labels: BTreeMap<_, _> = namespace.metadata.labels.unwrap_or_default();
                    Some(Kept::Namespace(labels))
                };
                self.events(Api::all(client), config, keep).await;
            }
            of => {
                let api: Api<DynamicObject> = match of {
                    Watched::MeshConfig => Api::namespaced_with(client, namespace, resource),
                    _ => Api::all_with(client, resource),
                };
                let keep = |mut object: DynamicObject| {
                    // Items of lists do not say what they are.
                    object.types = Some(kube::core::TypeMeta {
                        api_version: resource.api_version.clone(),
                        kind: resource.kind.clone(),
                    });
                    Document::new(of, object).map(|of| Kept::Document(Arc::new(of)))
                };
                self.events(api, config, keep).await;
            }
        }
    }

    async fn events<K>(
        &self,
        api: Api<K>,
        config: watcher::Config,
        keep: impl Fn(K) -> Option<Kept>,
    ) where
        K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
    {
        let key = |object: &K| (object.namespace().unwrap_or_default(), object.name_any());
        let mut events = pin!(watcher(api, config));
        let mut backoff = RETRY;
        while let Some(event) = events.next().await {
            let change = match event {
                Ok(Event::Init) => Change::Begin,
                Ok(Event::InitApply(object)) => match (key(&object), keep(object)) {
                    (key, Some(kept)) => Change::Listed(key, kept),
                    (_, None) => continue,
                },
                Ok(Event::InitDone) => Change::End,
                Ok(Event::Apply(object)) => match (key(&object), keep(object)) {
                    (key, Some(kept)) => Change::Put(key, kept),
                    (key, None) => Change::Remove(key),
                },
                Ok(Event::Delete(object)) => Change::Remove(key(&object)),
                Err(error) => {
                    self.failed(&error);
                    if leads_nowhere(&error) {
                        return;
                    }
                    // That history is forgotten is no failure: it is listed at once.
                    if !is_gone(&error) {
                        pause(&mut backoff).await;
                    }
                    continue;
                }
            };
            // A list that only begins may fail again.
            if !matches!(change, Change::Begin) {
                backoff.reset();
            }
            self.shared.apply(self.of, change);
        }
    }
}

/// Whether the server has forgotten what the watch was to go on from.
fn is_gone(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchError(status) if status.code == 410)
}

/// Whether the watch would only be told the same again: there is no such kind here (any more), or
/// what it wants to go on from is forgotten.
fn leads_nowhere(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status)) => status.code == 404,
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => {
            matches!(status.code, 404 | 410)
        }
        _ => false,
    }
}
