//! What the agent tells of itself: metrics and health over HTTP, decisions to those who trace.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Result;

use super::{Options, node::Node};
use crate::observe::{
    health::{Health, Pending},
    http::{self, Web},
    metrics::Metrics,
    status::TraceStatus,
    trace::Hub,
};

/// What the agent tells of itself, beside what it is asked over the admin socket.
pub struct Telling {
    /// Whether the main loop turns, and what is pending.
    pub health: Arc<Health>,
    /// What the main loop measures.
    pub metrics: Arc<Metrics>,
    /// Those who trace.
    pub traces: Hub,
    web: Option<Web>,
}

impl Telling {
    /// Nothing is served yet.
    pub fn new(options: &Options) -> Self {
        Self {
            health: Arc::new(Health::new(options.stall_limit, options.instance.clone())),
            metrics: Arc::new(Metrics::new(options.metrics_per_workload)),
            traces: Hub::default(),
            web: None,
        }
    }

    /// Serves metrics and health; `None`: nowhere.
    pub async fn serve(&mut self, address: Option<SocketAddr>) -> Result<()> {
        if let Some(address) = address {
            let web = http::serve(address, self.health.clone(), self.metrics.clone()).await?;
            tracing::info!("metrics and health at http://{}", web.address);
            self.web = Some(web);
        }
        Ok(())
    }

    /// Leaves the address to the next agent.
    pub async fn pause(&mut self) {
        if let Some(web) = self.web.take() {
            web.close().await;
        }
    }

    /// The main loop turns: tells so, whether a configuration was applied yet, what is too old of
    /// what is known, and whether anything is pending.
    pub fn turn(&self, node: &Node, applied: bool, stale: Option<Pending>) {
        self.health.beat();
        self.health.update(|readiness| {
            readiness.applied = applied;
            readiness.stale = stale;
            readiness.workloads = node
                .pending()
                .map(|(name, why)| Pending {
                    what: format!("workload {name}"),
                    why: why.to_owned(),
                })
                .collect();
        });
    }

    /// What `status` says of tracing.
    pub fn trace(&self, node: &Node) -> TraceStatus {
        TraceStatus {
            clients: self.traces.clients(),
            lost_in_kernel: node.events_lost(),
            lost_in_agent: self.traces.lost(),
        }
    }

    /// Where metrics and health are served.
    pub fn address(&self) -> Option<SocketAddr> {
        self.web.as_ref().map(|web| web.address)
    }

    /// The next scrape; never, where nothing is served.
    pub async fn scraped(&mut self) -> Option<http::Scrape> {
        match &mut self.web {
            Some(web) => web.scrapes.recv().await,
            None => std::future::pending().await,
        }
    }
}
