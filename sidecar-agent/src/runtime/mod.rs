//! The running agent: takes in what changed, works out what is wanted, brings the kernel to it.

mod node;
mod relays;
mod service;

use std::{
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval},
};

use crate::{
    compile::Compiler,
    dataplane::{self, Capacity},
    model::Compat,
    observe::admin::{self, Answer, Request},
    source::{
        dns::{DnsWatcher, Resolver},
        files,
    },
};
use node::Node;
use service::Service;

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
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// If the agent cannot start. Once it runs, nothing that is wrong with an input ends it.
pub async fn run(options: Options) -> Result<()> {
    // First of all: whoever asks for the status is to find one agent.
    let mut calls = admin::serve(&options.run_dir)?;
    let mut node = Node::start(&dataplane::Config {
        pin_dir: dataplane::default_pin_dir(&options.bpffs),
        capacity: options.capacity,
    })?;
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
    let mut service = Service::new();
    loop {
        generation += 1;
        input
            .snapshot
            .dns
            .clone_from(&names.borrow_and_update().addresses);
        apply(&mut node, &mut compiler, &input, &dns, generation);
        service.applied(generation, node.captured());
        // What follows changes nothing that is wanted; `break` leads to the next application.
        loop {
            tokio::select! {
                () = watch.changed() => {
                    input = store.update(files::read(&paths));
                    break;
                }
                changed = names.changed() => {
                    changed.context("the resolver ended")?;
                    break;
                }
                _ = ticks.tick() => {
                    node.refresh();
                    service.applied(generation, node.captured());
                }
                // From here, so that a loop that hangs is noticed.
                () = service.due() => service::alive(),
                _ = collisions.tick() => node.look_for_collisions(),
                Some((request, reply)) = calls.recv() => {
                    let answer = match request {
                        Request::Status => Answer::Status(Box::new(node.status(generation))),
                    };
                    // The client may have gone away.
                    let _ = reply.send(answer);
                }
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
            }
        }
    }
}

fn apply(
    node: &mut Node,
    compiler: &mut Compiler,
    input: &files::Update,
    dns: &DnsWatcher,
    generation: u64,
) {
    let started = Instant::now();
    let wanted = compiler.plans(&input.snapshot);
    dns.want(wanted.dns);
    let mut diagnostics = input.diagnostics.clone();
    diagnostics.extend(dns.state().borrow().diagnostics());
    diagnostics.extend(input.places.diagnostics(&wanted.findings));
    node.apply(wanted.workloads, diagnostics, input.places.clone());
    tracing::info!(generation, elapsed = ?started.elapsed(), "applied the configuration");
}
