//! How soon new connections follow when an operator toggles capture: from the request at the admin
//! socket until the end of the first connection that goes the new way.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use rustix::io::Errno;
use sidecar_agent::observe::admin::{self, Answer, Request};

use super::{Check, world::World};
use crate::poll::DEADLINE;

/// What was measured, and what went wrong.
#[derive(Default)]
pub struct Toggles {
    taken: Vec<Duration>,
    wrong: Vec<String>,
}

impl Toggles {
    /// Turns capture off and on so many times, while connections are made one after the other.
    ///
    /// # Errors
    /// When the agent refuses, or connections do not follow until the deadline.
    pub fn measure(&mut self, world: &World, times: u32) -> anyhow::Result<()> {
        let run_dir = world.lab.agent()?.run_dir();
        for on in (0..times).flat_map(|_| [false, true]) {
            let started = Instant::now();
            let taken = thread::scope(|scope| {
                let asked = scope.spawn(|| ask(&run_dir, on));
                while follows(world)? != on {
                    ensure!(started.elapsed() < DEADLINE, "no connection follows");
                }
                let taken = started.elapsed();
                asked.join().ok().context("asking has panicked")??;
                Ok(taken)
            })
            .with_context(|| format!("capture {}", name(on)))?;
            self.taken.push(taken);
            if follows(world)? != on {
                self.wrong.push(format!("not {} any more", name(on)));
            }
        }
        Ok(())
    }

    /// How long it took each time.
    pub fn taken(&self) -> &[Duration] {
        &self.taken
    }

    /// What is to be told. The times are figures: no limit is set to them here.
    pub fn check(mut self, when: &str) -> Check {
        self.taken.sort_unstable();
        let seen = format!(
            "{} times; connections follow within {:.2?} (p50), {:.2?} (p99), {:.2?} (longest) {}",
            self.taken.len(),
            self.percentile(50),
            self.percentile(99),
            self.percentile(100),
            self.wrong.join("; ")
        );
        let is_right = self.wrong.is_empty() && !self.taken.is_empty();
        Check::new(format!("toggling, {when}"), is_right, seen)
    }

    /// Of the sorted times, the one that so many of a hundred do not exceed.
    fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.taken.len() * percent).div_ceil(100);
        let index = rank.saturating_sub(1);
        self.taken.get(index).copied().unwrap_or_default()
    }
}

fn name(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

fn ask(run_dir: &Path, on: bool) -> anyhow::Result<()> {
    let request = Request::Capture {
        workload: World::TOGGLED.to_owned(),
        on: Some(on),
    };
    match admin::ask(run_dir, &request)? {
        Answer::Capture(capture) if capture.actual == on => Ok(()),
        answer => anyhow::bail!("the agent has answered {answer:?}"),
    }
}

/// Whether a connection that is made now is captured.
fn follows(world: &World) -> anyhow::Result<bool> {
    match world.visit_toggled()? {
        Ok(_) => Ok(false),
        Err(Errno::CONNREFUSED) => Ok(true),
        Err(errno) => Err(errno).context("a connection has failed"),
    }
}
