//! The running agent: takes in what changed, works out what is wanted, brings the kernel to it.

mod node;
mod relays;
mod toggles;

use std::{
    io::ErrorKind,
    net::SocketAddr,
    path::{Path, PathBuf},
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
    model::{Compat, FailurePolicy, diagnostic::Severity},
    observe::admin::{self, Answer, Request},
    source::{
        dns::{DnsWatcher, Resolver},
        files,
    },
};
use node::Node;
use toggles::Toggles;

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
    /// Directory of what outlives the agent, and the machine's restart.
    pub state_dir: PathBuf,
    /// Mount point of bpffs.
    pub bpffs: PathBuf,
    /// Name servers; empty: the system's.
    pub dns_servers: Vec<SocketAddr>,
    /// What becomes of connections when something fails, where a workload does not say.
    pub failure_policy: FailurePolicy,
    /// Whose rules say what is valid.
    pub compat: Compat,
    /// Map capacities.
    pub capacity: Capacity,
}

/// Runs until SIGTERM or SIGINT. What is captured stays so: see `uninstall`.
///
/// # Errors
/// If the agent cannot start. Once it runs, nothing that is wrong with an input ends it.
pub async fn run(options: Options) -> Result<()> {
    // First of all: whoever asks for the status is to find one agent.
    let mut calls = admin::serve(&options.run_dir)?;
    let toggles = Toggles::load(&options.state_dir)?;
    let config = dataplane::Config {
        pin_dir: dataplane::default_pin_dir(&options.bpffs),
        capacity: options.capacity,
    };
    let mut node = Node::start(&config, toggles)?;
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
        input.snapshot.failure_policy = options.failure_policy;
        input
            .snapshot
            .dns
            .clone_from(&names.borrow_and_update().addresses);
        apply(&mut node, &mut compiler, &input, &dns, generation);
        // As long as a file cannot be understood, what nobody claims may be what it declares.
        if !has_errors(&input) {
            node.let_go_unclaimed();
        }
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
                _ = ticks.tick() => node.refresh(),
                _ = collisions.tick() => node.look_for_collisions(),
                Some((request, reply)) = calls.recv() => {
                    let answer = match request {
                        Request::Status => Answer::Status(Box::new(node.status(generation))),
                        Request::Capture { workload, on } => node
                            .capture(&workload, on)
                            .map_or_else(|error| Answer::Error(format!("{error:#}")), Answer::Capture),
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

fn has_errors(input: &files::Update) -> bool {
    let mut diagnostics = input.diagnostics.iter();
    diagnostics.any(|diagnostic| diagnostic.severity == Severity::Error)
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

/// Removes the files of an agent that does not run: its socket and what operators have said. What
/// else is in those directories stays, and they do then.
///
/// # Errors
/// If one cannot be removed.
pub fn remove_files(run_dir: &Path, state_dir: &Path) -> Result<()> {
    for (file, dir) in [
        (admin::socket_path(run_dir), run_dir),
        (toggles::path(state_dir), state_dir),
    ] {
        for (path, result) in [
            (&*file, std::fs::remove_file(&file)),
            (dir, std::fs::remove_dir(dir)),
        ] {
            match result {
                Err(error)
                    if !matches!(
                        error.kind(),
                        ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty
                    ) =>
                {
                    return Err(error).with_context(|| format!("removing {}", path.display()));
                }
                _ => {}
            }
        }
    }
    Ok(())
}
