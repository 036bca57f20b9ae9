//! Metrics and health over HTTP: `/metrics`, `/livez`, `/readyz`.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode, Uri,
    body::{Bytes, Incoming},
    header::{ALLOW, CONTENT_TYPE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};

use super::{health::Health, metrics::Metrics, status::Status};

/// Most connections served at a time; others wait.
const CONNECTIONS: usize = 16;
/// Longest life of a connection. Each serves one request.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the main loop may take to tell the state.
const STATE: Duration = Duration::from_secs(5);
/// How long to wait after a failed accept.
const RETRY: Duration = Duration::from_millis(100);

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

/// A question for the main loop: the state, without the text of findings.
pub type Scrape = oneshot::Sender<Status>;

/// Metrics and health, served.
pub struct Web {
    /// Where, as the kernel chooses port 0.
    pub address: SocketAddr,
    /// What is asked of the main loop.
    pub scrapes: mpsc::Receiver<Scrape>,
    task: JoinHandle<()>,
}

impl Web {
    /// Ends it, so that the address is free.
    pub async fn close(self) {
        self.task.abort();
        // That it was aborted is known.
        let _ = self.task.await;
    }
}

/// What is served.
struct Served {
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    scrapes: mpsc::Sender<Scrape>,
}

/// Opens the address and serves it for as long as the runtime lives.
///
/// # Errors
/// If the address cannot be had.
pub async fn serve(address: SocketAddr, health: Arc<Health>, metrics: Arc<Metrics>) -> Result<Web> {
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!(
            "listening on {address} for metrics and health; give another --metrics-address, or an \
             empty one"
        )
    })?;
    let address = listener.local_addr().context("asking for the address")?;
    let (sender, scrapes) = mpsc::channel(CONNECTIONS);
    let served = Arc::new(Served {
        health,
        metrics,
        scrapes: sender,
    });
    Ok(Web {
        address,
        scrapes,
        task: tokio::spawn(accept(listener, served)),
    })
}

async fn accept(listener: TcpListener, served: Arc<Served>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    while let Ok(slot) = slots.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let served = served.clone();
                tokio::spawn(async move {
                    let _slot = slot;
                    match timeout(PATIENCE, one_request(stream, served)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => tracing::debug!("http: {error}"),
                        Err(_) => tracing::debug!("http: a client took more than {PATIENCE:?}"),
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, mostly: the next try may find some.
                tracing::warn!("http: {error}");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn one_request(stream: TcpStream, served: Arc<Served>) -> hyper::Result<()> {
    let service = service_fn(|request: Request<Incoming>| {
        let served = served.clone();
        async move { Ok::<_, Infallible>(served.answer(request.method(), request.uri()).await) }
    });
    http1::Builder::new()
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

impl Served {
    async fn answer(&self, method: &Method, uri: &Uri) -> Response<Full<Bytes>> {
        if method != Method::GET && method != Method::HEAD {
            let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET only\n");
            refusal
                .headers_mut()
                .insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
            return refusal;
        }
        match uri.path() {
            "/livez" => match self.health.live() {
                Ok(()) => text(StatusCode::OK, TEXT, "ok\n"),
                Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, TEXT, why + "\n"),
            },
            "/readyz" => {
                let report = self.health.report(instance(uri));
                let status = if report.ready {
                    StatusCode::OK
                } else {
                    StatusCode::SERVICE_UNAVAILABLE
                };
                // Strings and a bool only, so there is nothing that JSON could not hold.
                let body = serde_json::to_string(&report).unwrap_or_default();
                text(status, JSON, body + "\n")
            }
            "/metrics" => match self.state().await {
                Ok(status) => text(StatusCode::OK, OPEN_METRICS, self.metrics.render(status)),
                Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, TEXT, why + "\n"),
            },
            _ => text(
                StatusCode::NOT_FOUND,
                TEXT,
                "there are /metrics, /livez and /readyz\n",
            ),
        }
    }

    async fn state(&self) -> Result<Status, String> {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.scrapes.send(reply).await.ok()?;
            answer.await.ok()
        };
        match timeout(STATE, asked).await {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("the agent is ending".into()),
            Err(_) => Err(format!("the main loop did not answer within {STATE:?}")),
        }
    }
}

/// The agent that is asked, where a certain one is: `?instance=NAME`.
fn instance(uri: &Uri) -> Option<&str> {
    let mut pairs = uri.query()?.split('&');
    pairs.find_map(|pair| pair.strip_prefix("instance="))
}

fn text(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(
        CONTENT_TYPE,
        hyper::header::HeaderValue::from_static(content_type),
    );
    response
}
