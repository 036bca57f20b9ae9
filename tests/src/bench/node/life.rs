//! What is measured on the node.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use sidecar_common::values::Identity;

use super::{Node, PATIENCE};
use crate::{
    Cgroup, Namespace, Place,
    bench::{
        Bench, kernel,
        load::{LoadClient, LoadServer, cpu_time},
        metric::Metric,
        side::Side,
        slices::{Sample, Samples},
        statistics::{Median, percentile},
        world::{BETWEEN, ENDS, allow_many},
    },
    command::output,
    poll::{DEADLINE, poll},
    soak::resident,
};

/// `--max-workloads`, unless set.
const MOST_WORKLOADS: u32 = 1024;

/// An agent that used little of the CPU for so long has nothing to do.
const WINDOW: Duration = Duration::from_millis(250);

/// Starts the agent, changes one Sidecar again and again, restarts the agent, and looks what it takes.
///
/// # Errors
/// When the agent does not do what it is told.
pub fn changes(bench: &mut Bench<'_>, node: &mut Node) -> anyhow::Result<()> {
    let all = node.places.len();
    let started = Instant::now();
    node.start(all)?;
    let first = started.elapsed().as_secs_f64() * 1e3;
    bench.add(Metric::single("first_start_ms", "ms", first));
    rss(bench, node, "rss_mib")?;

    let mut taken = Vec::new();
    for change in 1..=bench.plan.changes {
        let wanted = change.is_multiple_of(2);
        let started = Instant::now();
        node.expose(change)?;
        while node.is_exposed()? != wanted {
            ensure!(started.elapsed() < DEADLINE, "no connection follows");
        }
        taken.push(started.elapsed().as_secs_f64() * 1e3);
    }
    for (name, percent) in [("apply_ms.p50", 50), ("apply_ms.p99", 99)] {
        if let Some(time) = percentile(&taken, percent) {
            bench.add(Metric::new(name, "ms", time));
        }
    }
    rss(bench, node, "rss_mib.after_changes")?;

    let mut taken = Vec::new();
    for _ in 0..bench.plan.restarts {
        node.agent.kill()?;
        let started = Instant::now();
        node.start(all)?;
        taken.push(started.elapsed().as_secs_f64() * 1e3);
    }
    if let Some(time) = Median::of(&taken) {
        bench.add(Metric::new("restart_adopt_ms", "ms", time));
    }
    rss(bench, node, "rss_mib.after_restart")?;
    node.uninstall()?;
    maps(bench, node)
}

fn rss(bench: &mut Bench<'_>, node: &Node, name: &str) -> anyhow::Result<()> {
    let pid = node.agent.pid().unwrap_or_default();
    #[expect(clippy::cast_precision_loss, reason = "figures")]
    let mib = resident(pid)? as f64 / 1024.;
    bench.add(Metric::single(name, "MiB", mib));
    Ok(())
}

/// What one more workload takes that follows a plan which is there already: by how much the maps
/// grow, with the identity of its cgroup, which the kernel counts in no map.
fn maps(bench: &mut Bench<'_>, node: &mut Node) -> anyhow::Result<()> {
    let all = node.places.len();
    node.write_workloads(true, 1)?;
    node.start(1)?;
    let one = kernel::map_bytes(&node.agent)?;
    let applied = node.applied();
    node.write_workloads(true, all)?;
    node.captured(all, applied)?;
    let many = kernel::map_bytes(&node.agent)?;
    for (map, bytes) in &many {
        let before = one.get(map).copied().unwrap_or_default();
        if *bytes != before {
            bench.say(&format!(
                "map {map}: {before} bytes for 1, {bytes} for {all}"
            ));
        }
    }
    let grown = many
        .values()
        .sum::<u64>()
        .saturating_sub(one.values().sum());
    #[expect(clippy::cast_precision_loss, reason = "figures")]
    let each = grown as f64 / (all - 1) as f64 + size_of::<Identity>() as f64;
    bench.add(Metric::single("map_bytes_per_workload", "bytes", each));
    let counters = many.get("COUNTERS").copied().unwrap_or_default();
    #[expect(clippy::cast_precision_loss, reason = "figures")]
    let each = counters as f64 / f64::from(MOST_WORKLOADS);
    let name = "counter_bytes_reserved_per_workload";
    bench.add(Metric::single(name, "bytes", each));
    node.uninstall()
}

/// Has the agent leave the CPU of both ends, and waits until it has nothing to do.
fn settle(node: &Node) -> anyhow::Result<()> {
    let pid = node.agent.pid().context("the agent is not running")?;
    let mut taskset = Command::new("taskset");
    taskset.args(["-a", "-c", "-p", &BETWEEN.to_string(), &pid.to_string()]);
    output(&mut taskset)?;
    let mut since = (Instant::now(), cpu_time(pid)?);
    poll(PATIENCE, "the agent to have nothing to do", || {
        if since.0.elapsed() < WINDOW {
            return None;
        }
        let before = since;
        since = (Instant::now(), cpu_time(pid).ok()?);
        let spent = Duration::from_nanos(since.1 - before.1);
        (spent < (since.0 - before.0) / 20).then_some(())
    })
}

/// The median of some samples: between two slices seconds pass, so what happens to the machine in one
/// moment must not decide.
fn usual(side: &mut Side, times: u32) -> anyhow::Result<Sample> {
    let mut samples = Samples::default();
    for _ in 0..5 {
        samples.push(side.connect(times, true)?);
    }
    let median = |values: &[f64]| Median::of(values).map(|of| of.value);
    Ok(Sample {
        rate: median(&samples.rates).context("no rate")?,
        cpu: median(&samples.cpu).context("no CPU time")?,
        ends: 0.,
    })
}

/// Connections of a process that nobody captures, while all others are captured, and while nothing
/// is. Between two slices the agent comes or goes.
///
/// # Errors
/// When the agent does not do what it is told.
pub fn bystander(bench: &mut Bench<'_>, node: &mut Node) -> anyhow::Result<()> {
    let (netns, cgroup) = (Namespace::new("bystander")?, Cgroup::new("bystander")?);
    allow_many(&netns)?;
    let place = Place::here().netns(&netns).cgroup(&cgroup);
    let address = "127.0.0.1:15001".parse()?;
    let server = LoadServer::of_connections(place, ENDS, address, true)?;
    let mut side = Side::with_server(LoadClient::start(place, ENDS)?, address, server);
    let times = bench.plan.connections;
    side.connect(times, true)?;
    let all = node.places.len();
    // One plan for all: it starts sooner, and is as much to who is not concerned.
    node.write_workloads(true, all)?;
    let [mut plain, mut beside] = [Samples::default(), Samples::default()];
    let mut is_there = false;
    bench.say("the agent comes and goes between slices");
    for _ in 0..bench.plan.slices {
        // Twice in each slice, and the next slice begins as this one has ended.
        for turn in 0..2 {
            if turn == 1 {
                if is_there {
                    node.uninstall()?;
                } else {
                    node.start(all)?;
                    settle(node)?;
                }
                is_there = !is_there;
                // What the kernel puts off is done meanwhile.
                side.connect(times, true)?;
            }
            let sample = usual(&mut side, times)?;
            if is_there { &mut beside } else { &mut plain }.push(sample);
        }
    }
    if is_there {
        node.uninstall()?;
    }
    node.write_workloads(false, all)?;
    let ratio = Median::of_ratios(&beside.rates, &plain.rates);
    bench.ratio("bystander.connect_over_plain".to_owned(), ratio);
    let ratio = Median::of_ratios(&beside.cpu, &plain.cpu);
    bench.ratio("bystander.cpu_per_connect_over_plain".to_owned(), ratio);
    Ok(())
}
