//! The running agent: takes in what changed, works out what is wanted, brings the kernel to it.

mod ending;
mod handover;
mod node;
mod options;
pub mod own_files;
mod plugins;
mod progress;
mod reading;
mod relays;
mod service;
mod tallies;
mod telling;
mod toggles;

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};
use tokio::{
    task::yield_now,
    time::{Interval, MissedTickBehavior, interval},
};

use crate::{
    cni::install::keep,
    compile::{Compiler, NodePlan},
    dataplane::Prepared,
    model::diagnostic::Diagnostic,
    observe::{
        admin::{Admin, Answer, Call, Request, Taken},
        status::{ClusterStatus, Status},
        trace::Directory,
    },
    relay::{Engine, EngineConfig},
    source::{
        dns::{DnsWatcher, Resolver},
        files::{self, Located},
    },
};
pub use ending::Signals;
use ending::hand_over;
use handover::Predecessor;
use node::Node;
pub use options::{Cluster, Options};
use plugins::Plugins;
use progress::Progress;
use reading::Reading;
use telling::Telling;
use toggles::Toggles;

/// How often a workload that could not be captured is tried again, and namespaces are looked at.
const REFRESH: Duration = Duration::from_secs(1);

/// How often it is looked whether applications listen where a Sidecar declares a listener.
const LOOK_FOR_COLLISIONS: Duration = Duration::from_secs(10);

/// How often it is looked whether there is anything to tell of pods.
const LOOK_FOR_NEWS: Duration = Duration::from_secs(5);

/// Runs until SIGTERM or SIGINT, or until the next agent has taken over. What is captured stays so:
/// see `uninstall`.
///
/// # Errors
/// If the agent cannot start. Once it runs, nothing that is wrong with an input ends it.
#[allow(
    clippy::too_many_lines,
    reason = "one loop, told in one piece: what leads to what is wanted next, and what ends it"
)]
pub async fn run(options: Options) -> Result<()> {
    let mut signals = Signals::new()?;
    let mut reading = Reading::start(&options).await?;
    if options.take_over {
        // Nobody is relieved before it is known what is wanted.
        tokio::select! {
            () = reading.is_listed() => {}
            () = signals.any() => return Ok(()),
        }
    }
    let Started {
        mut admin,
        mut node,
        mut predecessor,
        mut telling,
    } = start(&options).await?;
    let mut watch = reading.watch();
    let resolver = Resolver::new(&options.dns_servers).context("starting the resolver")?;
    let dns = DnsWatcher::spawn(resolver);
    let mut names = dns.state();
    let mut ticks = every(REFRESH);
    let mut collisions = every(LOOK_FOR_COLLISIONS);
    let mut news = every(LOOK_FOR_NEWS);

    let cni = options.cluster.as_ref().and_then(|of| of.cni.clone());
    let _kept = cni.map(keep::keep);
    let mut plugins = Plugins::new();

    let mut compiler = Compiler::default();
    let mut located = Located::default();
    let mut input = reading.read();
    let mut progress = Progress::new();
    loop {
        // Until then what is in the kernel stays as it is.
        if let Some(input) = &mut input {
            input.snapshot.failure_policy = options.failure_policy;
            input.snapshot.dns = names.borrow_and_update().addresses.clone();
            progress.begin();
            let wanted = compiler.plans(&input.snapshot);
            let found = located.diagnostics(&input.places, &wanted.findings);
            want(&mut node, wanted, input, found, &dns, watch.degraded());
        }
        if let Some((predecessor, tcp)) = predecessor.take() {
            // Nobody else is attended to before it is relieved.
            while !node.is_settled() {
                node.advance();
            }
            serve(&mut plugins, &options)?;
            predecessor.confirm(tcp)?;
            tracing::info!("taken over from the agent before");
        }
        serve(&mut plugins, &options)?;
        // What follows changes nothing that is wanted; `break` leads to what is wanted next.
        loop {
            if let Some(input) = &input
                && progress.has_settled(&mut node, &telling, input, reading.is_missing_any())
            {
                reading.tell(&node);
            }
            telling.turn(&node, progress.generation > 0, reading.stale());
            reading.answer(&mut plugins, &node);
            tokio::select! {
                // In between whoever asks is answered.
                () = yield_now(), if node.has_work() => node.advance(),
                () = watch.changed() => {
                    input = reading.read();
                    break;
                }
                () = reading.changed() => {
                    input = reading.read();
                    break;
                }
                changed = names.changed() => {
                    changed.context("the resolver ended")?;
                    break;
                }
                _ = ticks.tick() => {
                    node.refresh();
                    progress.tell(&node);
                    if let Some(last) = &input
                        && let Some(update) = reading.read_again(last)
                    {
                        input = Some(update);
                        break;
                    }
                }
                // From here, so that a loop that hangs is noticed.
                () = progress.service.due() => service::alive(),
                _ = collisions.tick() => node.look_for_collisions(),
                // Of what changes without a change of configuration.
                // What is as it should be at first is known once all had their turn.
                _ = news.tick(), if progress.generation > 0 => reading.tell(&node),
                call = plugins.called() => if reading.is_asked(call, &mut plugins) {
                    input = reading.read();
                    break;
                },
                Some(call) = admin.calls.recv() => match call {
                    Call::Ask(request, reply) => {
                        // The client may have gone away.
                        let cluster = reading.cluster();
                        let generation = progress.generation;
                        let _ = reply.send(answer(&mut node, request, generation, &telling, cluster));
                    }
                    Call::TakeOver(reply, taken) => {
                        let left = node.give_up();
                        admin.pause().await;
                        telling.pause().await;
                        if let Some(Taken { tcp }) = hand_over(&admin, &left, reply, taken).await {
                            admin.give_up();
                            drop((progress, plugins));
                            return left.end_relieved(tcp, &options, &mut signals).await;
                        }
                        tracing::warn!("the next agent has not taken over; going on");
                        node = left.go_on(&options)?;
                        telling.serve(options.metrics).await?;
                        admin.resume()?;
                        // The next agent may have put its socket in the place of ours.
                        plugins = Plugins::new();
                        break;
                    }
                },
                Some(reply) = telling.scraped() => {
                    let _ = reply.send(Status {
                        trace: telling.trace(&node),
                        cluster: reading.cluster(),
                        ..node.summary(progress.generation)
                    });
                }
                () = signals.any() => {
                    drop((admin, progress, plugins));
                    return node.end().end(true, options.drain, &mut signals).await;
                }
            }
        }
    }
}

/// Serves CNI plugins, where there are pods.
fn serve(plugins: &mut Plugins, options: &Options) -> Result<()> {
    match options.cluster {
        Some(_) => plugins.serve(&options.run_dir),
        None => Ok(()),
    }
}

fn every(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

struct Started {
    admin: Admin,
    node: Node,
    /// The agent before, and whether the relay's TCP listeners are taken from it.
    predecessor: Option<(Predecessor, bool)>,
    telling: Telling,
}

async fn start(options: &Options) -> Result<Started> {
    let load = || Prepared::load(&options.dataplane());
    let run_dir = &options.run_dir;
    let mut telling = Telling::new(options);
    let traces = || telling.traces.clone();
    let (prepared, admin, predecessor) = if options.take_over {
        // First of all: what does not load relieves nobody.
        let prepared = load()?;
        let predecessor = handover::ask(run_dir)?;
        let admin = match &predecessor {
            Some(predecessor) => Admin::adopt(run_dir, predecessor.admin()?, traces())?,
            None => Admin::open(run_dir, traces())?,
        };
        (prepared, admin, predecessor)
    } else {
        // First of all: whoever asks for the status is to find one agent.
        let admin = Admin::open(run_dir, traces())?;
        (load()?, admin, None)
    };
    // What programs of another set have led to a listener, only they can tell where it was going.
    let tcp = !prepared.is_beside();
    let sockets = match &predecessor {
        Some(predecessor) => predecessor.sockets(tcp)?,
        None => BTreeMap::new(),
    };
    let engine = Engine::start(&EngineConfig::default()).context("starting the relay")?;
    let toggles = Toggles::load(&options.state_dir)?;
    telling.serve(options.metrics).await?;
    let directory = Directory::default();
    let node = Node::start(
        prepared.take()?,
        engine,
        toggles,
        sockets,
        directory.clone(),
    )?;
    telling.health.update(|readiness| readiness.loaded = true);
    telling.traces.open(node.tap()?, directory)?;
    Ok(Started {
        admin,
        node,
        predecessor: predecessor.map(|predecessor| (predecessor, tcp)),
        telling,
    })
}

fn answer(
    node: &mut Node,
    request: Request,
    generation: u64,
    telling: &Telling,
    cluster: Option<ClusterStatus>,
) -> Answer {
    match request {
        Request::Status => Answer::Status(Box::new(Status {
            metrics: telling.address(),
            trace: telling.trace(node),
            cluster,
            ..node.status(generation)
        })),
        Request::Capture { workload, on } => node
            .capture(&workload, on)
            .map_or_else(|error| Answer::Error(format!("{error:#}")), Answer::Capture),
        Request::TakeOver | Request::Taken { .. } => {
            Answer::Error("nothing is being taken over".to_owned())
        }
    }
}

/// Has the node be brought to what is wanted now; `found`: on the way to it.
fn want(
    node: &mut Node,
    wanted: NodePlan,
    input: &files::Update,
    found: Vec<Diagnostic>,
    dns: &DnsWatcher,
    degraded: Option<Diagnostic>,
) {
    dns.want(wanted.dns);
    node.directory.set_mesh(wanted.mesh);
    let mut diagnostics = input.diagnostics.clone();
    diagnostics.extend(degraded);
    diagnostics.extend(dns.state().borrow().diagnostics());
    diagnostics.extend(found);
    node.want(wanted.workloads, diagnostics, input.places.clone());
}
