//! The way to the API server.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use hyper_util::{
    client::legacy::{Client as Http, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client, Config,
    client::{Body, ConfigExt},
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::time::timeout;
use tower::{BoxError, ServiceBuilder, service_fn};

use super::Options;

/// Longest time for a connection, and then until an answer begins.
const ANSWER: Duration = Duration::from_secs(30);
/// An idle connection is tried after so long, that often, with so long in between: a watch may be
/// silent for minutes, and a server that vanished says nothing.
const KEEPALIVE: (Duration, u32, Duration) = (Duration::from_secs(15), 3, Duration::from_secs(5));

/// Told when the API server begins to answer a watch.
pub(super) type OnWatch = Arc<dyn Fn() + Send + Sync>;

/// Where the API server is, and who we are.
///
/// # Errors
/// Outside a cluster without a kubeconfig, or where that cannot be read.
pub(super) async fn config(options: &Options) -> Result<Config> {
    let Some(path) = &options.kubeconfig else {
        return Config::incluster().context(
            "this is no pod with a service account; give the file that says where the API server \
             is: --kubeconfig FILE",
        );
    };
    let cannot = || format!("--kubeconfig {}: cannot be used", path.display());
    let file = Kubeconfig::read_from(path).with_context(cannot)?;
    Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .with_context(cannot)
}

/// A client with connections of its own. What kube makes by default would log every failed request
/// as an error, and not notice for minutes that a server is gone.
///
/// # Errors
/// If certificates or credentials cannot be used.
pub(super) fn client(config: &Config, on_watch: OnWatch) -> Result<Client> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(ANSWER));
    let (idle, retries, between) = KEEPALIVE;
    connector.set_keepalive(Some(idle));
    connector.set_keepalive_retries(Some(retries));
    connector.set_keepalive_interval(Some(between));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let http: Http<_, Body> = Http::builder(TokioExecutor::new()).build(connector);
    let send = service_fn(move |request: hyper::Request<Body>| {
        let is_watch = is_watch(request.uri().query().unwrap_or_default());
        let answer = http.request(request);
        let on_watch = Arc::clone(&on_watch);
        async move {
            let answer = timeout(ANSWER, answer).await??;
            if is_watch && answer.status().is_success() {
                on_watch();
            }
            Ok::<_, BoxError>(answer)
        }
    });
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(send);
    Ok(Client::new(service, config.default_namespace.clone()))
}

fn is_watch(query: &str) -> bool {
    query.split('&').any(|parameter| parameter == "watch=true")
}
