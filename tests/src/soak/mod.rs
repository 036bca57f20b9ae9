//! A bounded load on a node whose agent is killed, restarted, succeeded, upgraded and toggled, and
//! whose Sidecar is edited every second: not one connection may fail or go astray, and nothing may
//! grow.

mod clients;
mod growth;
mod toggles;
mod world;

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::lab::WORKLOAD;
use clients::Clients;
use growth::Footprint;

pub(crate) use growth::resident;
pub(crate) use toggles::Toggles;
pub(crate) use world::World;

/// How often the Sidecar is edited, and something is done to the agent.
const PERIOD: Duration = Duration::from_secs(1);

/// How long the load may take: what is not done then has failed.
const LIMIT: Duration = Duration::from_mins(20);

/// How often capture is turned off and on while there is load each time, and when there is none.
const MEASURED: [u32; 2] = [5, 200];

/// One thing that was looked at.
#[derive(Debug)]
pub struct Check {
    /// What it is.
    pub what: String,
    /// What was seen.
    pub seen: String,
    /// Whether it is as it has to be.
    pub ok: bool,
}

impl Check {
    fn new(what: impl Into<String>, ok: bool, seen: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            seen: seen.into(),
            ok,
        }
    }
}

/// What is done to the agent, in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Kill,
    Toggle,
    Restart,
    TakeOver,
    Upgrade,
}

const EVENTS: [Event; 5] = [
    Event::Kill,
    Event::Toggle,
    Event::Restart,
    Event::TakeOver,
    Event::Upgrade,
];

/// Runs the load until so many connections are made.
///
/// # Errors
/// When the world cannot be made, or the agent does not do what it is told.
pub fn run(connections: u64, mut tell: impl FnMut(&str)) -> anyhow::Result<Vec<Check>> {
    let mut world = World::new()?;
    let started = Instant::now();
    let before = Footprint::of(&world)?;
    let mut counts = [0_u32; EVENTS.len()];
    let mut edits = 0_u32;
    let mut wrong_toggles = Vec::new();
    let [mut loaded, mut idle] = [Toggles::default(), Toggles::default()];
    let clients = Clients::start(&world, connections)?;
    let mut turns = EVENTS.iter().zip(0..).cycle();
    while clients.are_busy() {
        ensure!(
            started.elapsed() < LIMIT,
            "only {} connections in {LIMIT:?}",
            clients.made()
        );
        let turn = Instant::now();
        world.edit(edits)?;
        edits += 1;
        let (event, index) = turns.next().context("no events")?;
        match event {
            Event::Kill => {
                world.lab.agent_mut()?.kill()?;
                world.lab.agent_mut()?.start()?;
            }
            Event::Restart => {
                world.lab.agent_mut()?.stop()?;
                world.lab.agent_mut()?.start()?;
            }
            Event::Toggle => {
                wrong_toggles.extend(world.toggle()?);
                loaded.measure(&world, MEASURED[0])?;
            }
            Event::TakeOver => world
                .lab
                .agent_mut()?
                .succeed::<&str>(&[])?
                .wait()
                .map(drop)?,
            Event::Upgrade => world.upgrade()?,
        }
        counts[index] += 1;
        tell(&format!(
            "{:>5.0?} {event:?}: {} connections",
            started.elapsed(),
            clients.made()
        ));
        clients.wait(PERIOD.saturating_sub(turn.elapsed()));
    }
    let made = clients.made();
    let mut checks = clients.end();
    world.settle()?;
    checks.push(Check::new(
        "toggling holds for the next connection",
        wrong_toggles.is_empty(),
        if wrong_toggles.is_empty() {
            "it did".to_owned()
        } else {
            wrong_toggles.join("; ")
        },
    ));
    idle.measure(&world, MEASURED[1])?;
    checks.extend([loaded.check("under load"), idle.check("without load")]);
    checks.extend(before.settled(&world)?);
    let done: Vec<String> = EVENTS
        .iter()
        .zip(counts)
        .map(|(event, count)| format!("{event:?} {count}"))
        .collect();
    checks.push(Check::new(
        "every event happened",
        counts.iter().all(|count| *count > 0),
        format!(
            "{}, {edits} edits of {WORKLOAD}'s Sidecar, {made} connections, {:.0?}",
            done.join(", "),
            started.elapsed()
        ),
    ));
    Ok(checks)
}
