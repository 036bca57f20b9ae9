//! The benchmark: ours beside no capture, iptables and other relays, slice by slice. What is
//! reported is a ratio of one run wherever time is concerned, as the machine is never the same twice.

mod acceleration;
mod bytes;
mod chart;
mod connect;
mod conntrack;
mod hooks;
mod idle;
mod kernel;
pub mod load;
mod metric;
mod node;
mod page;
mod relays;
mod report;
mod side;
mod slices;
pub mod statistics;
mod toggling;
mod world;

use std::{thread, time::Instant};

use anyhow::ensure;

pub use chart::draw;
pub use metric::{Metric, Target, asked_for};
pub use page::page;
pub use report::{Host, Report};
pub use statistics::Median;

use node::{Node, Size};
use world::World;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Slices of each comparison.
    pub slices: usize,
    /// Connections of a slice. Source ports are used again after a second.
    pub connections: u32,
    /// Time of a slice in which bytes are sent, in ms.
    pub millis: u32,
    /// How often capture is turned off and on.
    pub toggles: u32,
    /// Relayed connections over which nothing goes.
    pub idle: u32,
    /// How often one Sidecar of the large node is changed.
    pub changes: usize,
    /// How often the agent of the large node is killed and started.
    pub restarts: u32,
    /// How large the large node is.
    node: Size,
}

impl Plan {
    /// What results are taken from.
    pub const FULL: Self = Self {
        slices: 31,
        connections: 2000,
        millis: 60,
        toggles: 200,
        idle: 1000,
        changes: 200,
        restarts: 15,
        node: node::NODE,
    };
    /// To see where things stand.
    pub const QUICK: Self = Self {
        slices: 9,
        connections: 1000,
        millis: 30,
        toggles: 50,
        idle: 1000,
        changes: 30,
        restarts: 5,
        node: node::NODE,
    };
    /// To see that it works: figures mean nothing.
    pub const SMOKE: Self = Self {
        slices: 1,
        connections: 5,
        millis: 2,
        toggles: 2,
        idle: 8,
        changes: 2,
        restarts: 1,
        node: Size {
            services: 400,
            namespaces: 4,
            sidecars: 40,
            workloads: 3,
        },
    };
}

/// A part of the benchmark.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Group {
    /// New connections to a proxy, beside none and iptables.
    Connect,
    /// The hop to a proxy, accelerated and not.
    Acceleration,
    /// Connections led by the kernel, new ones and their bytes.
    Direct,
    /// The relay, beside `HAProxy` and Envoy.
    Relay,
    /// What the relay keeps for idle connections.
    Idle,
    /// How long the programs run.
    Hooks,
    /// How soon connections follow when capture is turned off and on.
    Toggle,
    /// A large node: one change, a restart, memory.
    Node,
    /// A process that nobody captures, on a large node.
    Bystander,
}

impl Group {
    /// All.
    pub const ALL: [Self; 9] = [
        Self::Connect,
        Self::Acceleration,
        Self::Direct,
        Self::Hooks,
        Self::Relay,
        Self::Idle,
        Self::Toggle,
        Self::Node,
        Self::Bystander,
    ];

    /// Those that are measured in one world.
    const TOGETHER: [Self; 5] = [
        Self::Connect,
        Self::Acceleration,
        Self::Direct,
        Self::Hooks,
        Self::Relay,
    ];
}

/// A run.
pub struct Bench<'a> {
    plan: Plan,
    metrics: Vec<Metric>,
    started: Instant,
    tell: &'a mut dyn FnMut(&str),
}

/// Runs some groups, and tells each result as it comes.
///
/// # Errors
/// When a side does not work; slow is not wrong.
pub fn run(plan: Plan, groups: &[Group], tell: &mut dyn FnMut(&str)) -> anyhow::Result<Report> {
    let cpus = thread::available_parallelism()?.get();
    ensure!(
        cpus > world::BETWEEN,
        "relays and both ends of their connections need a CPU each; there is {cpus}"
    );
    let mut bench = Bench {
        plan,
        metrics: Vec::new(),
        started: Instant::now(),
        tell,
    };
    let has = |group| groups.contains(&group);
    if Group::TOGETHER.into_iter().any(has) {
        bench.say("making namespaces, starting the agent");
        let world = World::new(0)?;
        world.verify()?;
        if has(Group::Connect) {
            connect::proxied(&mut bench, &world)?;
        }
        if has(Group::Acceleration) {
            acceleration::measure(&mut bench, &world)?;
        }
        if has(Group::Direct) {
            connect::direct(&mut bench, &world)?;
            bytes::direct(&mut bench, &world)?;
        }
        if has(Group::Hooks) {
            hooks::measure(&mut bench, &world, "1_rule")?;
        }
        if has(Group::Relay) {
            bytes::relayed(&mut bench, &world)?;
        }
    }
    if has(Group::Idle) {
        // A relay that nothing went through yet: what it has freed it would use again.
        idle::measure(&mut bench, &World::new(0)?)?;
    }
    if has(Group::Hooks) {
        bench.say("the same with 10,000 rules in the plans");
        hooks::measure(&mut bench, &World::new(10_000)?, "10000_rules")?;
    }
    if has(Group::Toggle) {
        toggling::measure(&mut bench)?;
    }
    if has(Group::Node) || has(Group::Bystander) {
        let size = plan.node;
        bench.say(&format!("making a node: {size:?}"));
        let mut node = Node::new(size)?;
        if has(Group::Bystander) {
            node::bystander(&mut bench, &mut node)?;
        }
        if has(Group::Node) {
            node::changes(&mut bench, &mut node)?;
        }
    }
    Ok(Report {
        host: Host::this(plan)?,
        metrics: bench.metrics,
    })
}

impl Bench<'_> {
    fn say(&mut self, text: &str) {
        let seconds = self.started.elapsed().as_secs();
        (self.tell)(&format!("{seconds:>4} s  {text}"));
    }

    fn add(&mut self, metric: Metric) {
        self.say(&metric.to_string());
        self.metrics.push(metric);
    }

    /// Adds a ratio; nothing when there is none, as a side did nothing at all.
    fn ratio(&mut self, name: String, ratio: Option<Median>) {
        match ratio {
            Some(ratio) => self.add(Metric::new(name, "ratio", ratio)),
            None => self.say(&format!("{name}: no figures")),
        }
    }
}

/// The words that begin a command which runs on one CPU.
fn pinned(cpu: usize) -> [String; 3] {
    ["taskset".to_owned(), "-c".to_owned(), cpu.to_string()]
}
