//! The running agent: takes in what changed, works out what is wanted, brings the kernel to it.

mod handover;
mod node;
mod relays;
mod service;
mod toggles;

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{
    compile::Compiler,
    dataplane::{self, Capacity, Prepared},
    model::{Compat, FailurePolicy, diagnostic::Severity},
    observe::{
        admin::{self, Admin, Answer, Call, Request, Taken},
        health::{Health, Pending},
        http::{self, Web},
        metrics::Metrics,
        status::{Status, TraceStatus},
        trace::{Directory, Hub},
    },
    relay::{Engine, EngineConfig},
    source::{
        dns::{DnsWatcher, Resolver},
        files,
    },
};
use handover::Predecessor;
use node::Node;
use relays::Paused;
use service::Service;
use toggles::Toggles;

/// How often a workload that could not be captured is tried again, and namespaces are looked at.
const REFRESH: Duration = Duration::from_secs(1);

/// How often it is looked whether applications listen where a Sidecar declares a listener.
const LOOK_FOR_COLLISIONS: Duration = Duration::from_secs(10);

/// How long TCP listeners that the next agent has not taken are served still: for what was led to
/// them, and has not arrived yet.
const STRAGGLERS: Duration = Duration::from_secs(2);

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
    /// Take over from the agent that runs with this run directory, if one does.
    pub take_over: bool,
    /// How long live relayed connections may go on when the agent ends.
    pub drain: Duration,
    /// Where metrics and health are served; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// Decisions are told by workload in metrics.
    pub metrics_per_workload: bool,
    /// Longest time in which the main loop must turn once.
    pub stall_limit: Duration,
}

/// Runs until SIGTERM or SIGINT, or until the next agent has taken over. What is captured stays so:
/// see `uninstall`.
///
/// # Errors
/// If the agent cannot start. Once it runs, nothing that is wrong with an input ends it.
pub async fn run(options: Options) -> Result<()> {
    let mut signals = Signals::new()?;
    let Started {
        mut admin,
        mut node,
        mut predecessor,
        mut telling,
    } = start(&options).await?;
    let paths: Vec<PathBuf> = [&options.config]
        .into_iter()
        .chain(&options.mesh_config)
        .cloned()
        .collect();
    let mut watch = files::watch(&paths);
    let mut store = files::Store::new(options.compat);
    let resolver = Resolver::new(&options.dns_servers).context("starting the resolver")?;
    let dns = DnsWatcher::spawn(resolver);
    let mut names = dns.state();
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
        input.snapshot.failure_policy = options.failure_policy;
        input
            .snapshot
            .dns
            .clone_from(&names.borrow_and_update().addresses);
        let started = Instant::now();
        apply(&mut node, &mut compiler, &input, &dns);
        let elapsed = started.elapsed();
        telling.metrics.applied(elapsed);
        tracing::info!(generation, ?elapsed, "applied the configuration");
        service.applied(generation, node.captured());
        if let Some((predecessor, tcp)) = predecessor.take() {
            predecessor.confirm(tcp)?;
            tracing::info!("taken over from the agent before");
        }
        node.close_unclaimed();
        // What follows changes nothing that is wanted; `break` leads to the next application.
        loop {
            telling.turn(&node);
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
                Some(call) = admin.calls.recv() => match call {
                    Call::Ask(request, reply) => {
                        // The client may have gone away.
                        let _ = reply.send(answer(&mut node, request, generation, &telling));
                    }
                    Call::TakeOver(reply, taken) => {
                        let left = node.give_up();
                        admin.pause().await;
                        telling.pause().await;
                        if let Some(Taken { tcp }) = hand_over(&admin, &left, reply, taken).await {
                            admin.give_up();
                            drop(service);
                            return left.end(tcp, options.drain, &mut signals).await;
                        }
                        tracing::warn!("the next agent has not taken over; going on");
                        node = left.go_on(&options)?;
                        telling.serve(options.metrics).await?;
                        admin.resume()?;
                        break;
                    }
                },
                Some(reply) = telling.scraped() => {
                    let _ = reply.send(Status {
                        trace: telling.trace(&node),
                        ..node.summary(generation)
                    });
                }
                () = signals.any() => {
                    drop((admin, service));
                    return node.end().end(true, options.drain, &mut signals).await;
                }
            }
        }
    }
}

struct Started {
    admin: Admin,
    node: Node,
    /// The agent before, and whether the relay's TCP listeners are taken from it.
    predecessor: Option<(Predecessor, bool)>,
    telling: Telling,
}

/// What the agent tells of itself, beside what it is asked over the admin socket.
struct Telling {
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    traces: Hub,
    web: Option<Web>,
}

impl Telling {
    fn new(options: &Options) -> Self {
        Self {
            health: Arc::new(Health::new(options.stall_limit)),
            metrics: Arc::new(Metrics::new(options.metrics_per_workload)),
            traces: Hub::default(),
            web: None,
        }
    }

    /// Serves metrics and health; `None`: nowhere.
    async fn serve(&mut self, address: Option<SocketAddr>) -> Result<()> {
        if let Some(address) = address {
            let web = http::serve(address, self.health.clone(), self.metrics.clone()).await?;
            tracing::info!("metrics and health at http://{}", web.address);
            self.web = Some(web);
        }
        Ok(())
    }

    /// Leaves the address to the next agent.
    async fn pause(&mut self) {
        if let Some(web) = self.web.take() {
            web.close().await;
        }
    }

    /// The main loop turns: tells so, and whether anything is pending.
    fn turn(&self, node: &Node) {
        self.health.beat();
        self.health.update(|readiness| {
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

    fn trace(&self, node: &Node) -> TraceStatus {
        TraceStatus {
            clients: self.traces.clients(),
            lost_in_kernel: node.events_lost(),
            lost_in_agent: self.traces.lost(),
        }
    }

    /// The next scrape; never, where nothing is served.
    async fn scraped(&mut self) -> Option<http::Scrape> {
        match &mut self.web {
            Some(web) => web.scrapes.recv().await,
            None => std::future::pending().await,
        }
    }
}

async fn start(options: &Options) -> Result<Started> {
    let load = || {
        Prepared::load(&dataplane::Config {
            pin_dir: dataplane::default_pin_dir(&options.bpffs),
            capacity: options.capacity,
        })
    };
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

/// Offers the next agent what it needs, and waits until it has taken it. `None`: it has not.
async fn hand_over(
    admin: &Admin,
    left: &Left,
    reply: oneshot::Sender<Answer>,
    taken: oneshot::Receiver<Taken>,
) -> Option<Taken> {
    let offer = handover::offer(admin.descriptor(), &left.paused);
    // Whether it is there is told by its confirmation.
    let _ = reply.send(Answer::Offer(offer));
    taken.await.ok()
}

/// What is left of an agent that follows no configuration any more.
pub struct Left {
    /// It still moves the bytes of live connections.
    pub engine: Engine,
    /// What operators have said.
    pub toggles: Toggles,
    /// The relay's listeners, by workload.
    pub paused: BTreeMap<String, Paused>,
    /// Who is who, for those who trace.
    pub directory: Directory,
}

impl Left {
    /// Goes on as before.
    fn go_on(self, options: &Options) -> Result<Node> {
        let dataplane = dataplane::Dataplane::load(&dataplane::Config {
            pin_dir: dataplane::default_pin_dir(&options.bpffs),
            capacity: options.capacity,
        })?;
        let paused = self.paused.into_iter();
        let sockets = paused.map(|(workload, paused)| (workload, paused.sockets));
        let (engine, toggles) = (self.engine, self.toggles);
        Node::start(
            dataplane,
            engine,
            toggles,
            sockets.collect(),
            self.directory,
        )
    }

    /// Ends with the last live connection, after `drain`, or with another signal.
    async fn end(self, tcp: bool, drain: Duration, signals: &mut Signals) -> Result<()> {
        if !tcp {
            for (_, paused) in self.paused {
                paused.serve_tcp(&self.engine);
            }
            let _ = timeout(STRAGGLERS, signals.any()).await;
        }
        let active = self.engine.stats().active;
        if active > 0 {
            tracing::info!(active, "waiting for relayed connections to end");
        }
        let engine = self.engine;
        let drained = tokio::task::spawn_blocking(move || engine.shutdown(drain));
        tokio::select! {
            cut = drained => match cut.context("the relay ended badly")? {
                0 => tracing::info!("ended"),
                cut => tracing::warn!(cut, "ended; relayed connections were reset"),
            },
            // The process ends, and with it everything.
            () = signals.any() => tracing::warn!("ended at once; relayed connections are reset"),
        }
        Ok(())
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("waiting for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("waiting for SIGINT")?,
        })
    }

    /// Waits for one.
    async fn any(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn answer(node: &mut Node, request: Request, generation: u64, telling: &Telling) -> Answer {
    match request {
        Request::Status => Answer::Status(Box::new(Status {
            metrics: telling.web.as_ref().map(|web| web.address),
            trace: telling.trace(node),
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

fn apply(node: &mut Node, compiler: &mut Compiler, input: &files::Update, dns: &DnsWatcher) {
    let wanted = compiler.plans(&input.snapshot);
    dns.want(wanted.dns);
    node.directory.set_mesh(wanted.mesh);
    let mut diagnostics = input.diagnostics.clone();
    diagnostics.extend(dns.state().borrow().diagnostics());
    diagnostics.extend(input.places.diagnostics(&wanted.findings));
    node.apply(wanted.workloads, diagnostics, input.places.clone());
    // As long as a file cannot be understood, what nobody claims may be what it declares.
    if !has_errors(input) {
        node.let_go_unclaimed();
    }
}

fn has_errors(input: &files::Update) -> bool {
    let mut diagnostics = input.diagnostics.iter();
    diagnostics.any(|diagnostic| diagnostic.severity == Severity::Error)
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
