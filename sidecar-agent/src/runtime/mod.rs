//! The running agent: takes in what changed, works out what is wanted, brings the kernel to it.

mod node;
mod relays;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc::Receiver,
    time::{MissedTickBehavior, interval},
};

use crate::{
    compile::Compiler,
    dataplane::{self, Capacity},
    model::Compat,
    observe::{
        admin::{self, Answer, Request},
        health::{Health, Pending},
        http::{self, Scrape},
        metrics::Metrics,
        status::{Status, TraceStatus},
        trace::Hub,
    },
    source::{
        dns::{DnsWatcher, Resolver},
        files,
    },
};
use node::Node;

/// How often a workload that could not be captured is tried again, and namespaces are looked at.
const REFRESH: Duration = Duration::from_secs(1);

/// How often it is looked whether applications listen where a Sidecar declares a listener.
const LOOK_FOR_COLLISIONS: Duration = Duration::from_secs(10);

/// Settings of a running agent.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of resources.
    pub config: PathBuf,
    /// File with the mesh configuration.
    pub mesh_config: Option<PathBuf>,
    /// Directory of the admin socket.
    pub run_dir: PathBuf,
    /// Mount point of bpffs.
    pub bpffs: PathBuf,
    /// Name servers; empty: the system's.
    pub dns_servers: Vec<SocketAddr>,
    /// Whose rules say what is valid.
    pub compat: Compat,
    /// Map capacities.
    pub capacity: Capacity,
    /// Where metrics and health are served; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// Decisions are told by workload in metrics.
    pub metrics_per_workload: bool,
    /// Longest time in which the main loop must turn once.
    pub stall_limit: Duration,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// If the agent cannot start. Once it runs, nothing that is wrong with an input ends it.
pub async fn run(options: Options) -> Result<()> {
    // First of all: whoever asks for the status is to find one agent.
    let traces = Hub::default();
    let mut calls = admin::serve(&options.run_dir, traces.clone())?;
    let health = Arc::new(Health::new(options.stall_limit));
    let metrics = Arc::new(Metrics::new(options.metrics_per_workload));
    let (metrics_address, mut scrapes) = match options.metrics {
        Some(address) => {
            let (address, scrapes) = http::serve(address, health.clone(), metrics.clone()).await?;
            tracing::info!("metrics and health at http://{address}");
            (Some(address), Some(scrapes))
        }
        None => (None, None),
    };
    let mut node = Node::start(&dataplane::Config {
        pin_dir: dataplane::default_pin_dir(&options.bpffs),
        capacity: options.capacity,
    })?;
    health.update(|readiness| readiness.loaded = true);
    traces.open(node.tap()?, node.directory.clone())?;
    let paths: Vec<PathBuf> = [options.config]
        .into_iter()
        .chain(options.mesh_config)
        .collect();
    let mut watch = files::watch(&paths);
    let mut store = files::Store::new(options.compat);
    let resolver = Resolver::new(&options.dns_servers).context("starting the resolver")?;
    let dns = DnsWatcher::spawn(resolver);
    let mut names = dns.state();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut ticks = interval(REFRESH);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut collisions = interval(LOOK_FOR_COLLISIONS);
    collisions.set_missed_tick_behavior(MissedTickBehavior::Delay);

    let mut compiler = Compiler::default();
    let mut input = store.update(files::read(&paths));
    let mut generation = 0_u64;
    loop {
        generation += 1;
        input
            .snapshot
            .dns
            .clone_from(&names.borrow_and_update().addresses);
        let started = Instant::now();
        apply(&mut node, &mut compiler, &input, &dns);
        let elapsed = started.elapsed();
        metrics.applied(elapsed);
        tracing::info!(generation, ?elapsed, "applied the configuration");
        // What follows changes nothing that is wanted; `break` leads to the next application.
        loop {
            turn(&health, &node);
            tokio::select! {
                () = watch.changed() => {
                    input = store.update(files::read(&paths));
                    break;
                }
                changed = names.changed() => {
                    changed.context("the resolver ended")?;
                    break;
                }
                _ = ticks.tick() => node.refresh(),
                _ = collisions.tick() => node.look_for_collisions(),
                Some((request, reply)) = calls.recv() => {
                    let answer = match request {
                        Request::Status => Answer::Status(Box::new(Status {
                            metrics: metrics_address,
                            trace: trace(&node, &traces),
                            ..node.status(generation)
                        })),
                    };
                    // The client may have gone away.
                    let _ = reply.send(answer);
                }
                Some(reply) = next(&mut scrapes) => {
                    let _ = reply.send(Status {
                        trace: trace(&node, &traces),
                        ..node.summary(generation)
                    });
                }
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
            }
        }
    }
}

/// The main loop turns: tells so, and whether anything is pending.
fn turn(health: &Health, node: &Node) {
    health.beat();
    health.update(|readiness| {
        readiness.applied = true;
        readiness.workloads = node
            .pending()
            .map(|(name, why)| Pending {
                what: format!("workload {name}"),
                why: why.to_owned(),
            })
            .collect();
    });
}

fn trace(node: &Node, traces: &Hub) -> TraceStatus {
    TraceStatus {
        clients: traces.clients(),
        lost_in_kernel: node.events_lost(),
        lost_in_agent: traces.lost(),
    }
}

/// The next scrape; never, where nothing is served.
async fn next(scrapes: &mut Option<Receiver<Scrape>>) -> Option<Scrape> {
    match scrapes {
        Some(scrapes) => scrapes.recv().await,
        None => std::future::pending().await,
    }
}

fn apply(node: &mut Node, compiler: &mut Compiler, input: &files::Update, dns: &DnsWatcher) {
    let wanted = compiler.plans(&input.snapshot);
    dns.want(wanted.dns);
    node.directory.set_mesh(wanted.mesh);
    let mut diagnostics = input.diagnostics.clone();
    diagnostics.extend(dns.state().borrow().diagnostics());
    diagnostics.extend(input.places.diagnostics(&wanted.findings));
    node.apply(wanted.workloads, diagnostics, input.places.clone());
}
