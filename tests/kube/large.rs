//! A large cluster.

use std::{fmt::Write as _, time::Instant};

use anyhow::{Context as _, ensure};
use sidecar_tests::{
    bench::statistics::percentile,
    kube::{AT_ONCE, patiently},
    require_kube,
    scrape::Page,
};

use crate::world::{DETAILS, SECRET, World};

/// How many services there are.
const SERVICES: u32 = 10_000;
/// How many edits are timed.
const EDITS: usize = 100;
/// Most memory that the agent may have, in MiB.
const LIMIT: f64 = 256.0;

fn services() -> String {
    let mut text = String::from("{\"apiVersion\": \"v1\", \"kind\": \"List\", \"items\": [");
    for number in 0..SERVICES {
        let comma = if number == 0 { "" } else { "," };
        let (high, low) = (100 + number / 250, 1 + number % 250);
        // Writing to a string cannot fail.
        _ = write!(
            text,
            "{comma}{{\"apiVersion\": \"v1\", \"kind\": \"Service\", \
             \"metadata\": {{\"name\": \"s{number}\", \"namespace\": \"prod-us1\", \
             \"labels\": {{\"app\": \"s{number}\", \"team\": \"a\"}}}}, \
             \"spec\": {{\"clusterIP\": \"10.96.{high}.{low}\", \"selector\": {{\"app\": \"s{number}\"}}, \
             \"ports\": [{{\"name\": \"http\", \"port\": 8080, \"targetPort\": \"http\"}}]}}}}"
        );
    }
    text + "]}"
}

fn resident(world: &World) -> anyhow::Result<f64> {
    let scrape = Page::of(world.lab.agent()?)?;
    let bytes = scrape.sum("process_resident_memory_bytes", &[]);
    Ok(bytes.context("there is no such metric")? / f64::from(1 << 20))
}

#[test]
fn ten_thousand_services() -> anyhow::Result<()> {
    require_kube!();
    let world = World::captured()?;
    let before = resident(&world)?;
    world.api.create(&services())?;
    let agent = world.lab.agent()?;
    patiently("all services to be known", || {
        let cluster = world.cluster()?;
        let kinds = cluster["kinds"].as_array().context("no kinds")?;
        let services = kinds.iter().find(|of| of["kind"] == "Service");
        let objects = services.and_then(|of| of["objects"].as_u64());
        ensure!(objects > Some(SERVICES.into()), "{objects:?}");
        Ok(())
    })?;
    let generation = agent.status()?["generation"].as_u64();
    patiently("them to be applied", || {
        let status = agent.status()?;
        ensure!(status["generation"].as_u64() >= generation, "not yet");
        ensure!(
            status["workloads"][0]["problem"].is_null(),
            "{}",
            status["workloads"][0]
        );
        Ok(())
    })?;
    let mut took = Vec::new();
    for edit in 0..EDITS {
        let exposed = edit % 2 == 1;
        world.expose(if exposed { "prod-us1" } else { "other" })?;
        let accepted = Instant::now();
        patiently("a connection to follow", || {
            ensure!(world.reaches(DETAILS)? == exposed, "not yet");
            Ok(())
        })?;
        took.push(accepted.elapsed().as_secs_f64() * 1e3);
    }
    ensure!(!world.reaches(SECRET)?, "what is not exposed is reached");
    let after = resident(&world)?;
    let of = |percent| percentile(&took, percent).map_or(f64::NAN, |of| of.value);
    println!(
        "{SERVICES} services: resident {after:.1} MiB (before them {before:.1}); {EDITS} edits by kubectl: \
         ms from its end until a connection follows: p50 {:.1}, p99 {:.1}",
        of(50),
        of(99),
    );
    let p99 = of(99);
    ensure!(p99 < AT_ONCE.as_secs_f64() * 1e3, "p99 is {p99} ms");
    ensure!(after < LIMIT, "the agent has {after:.1} MiB");
    Ok(())
}
