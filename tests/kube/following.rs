//! What is applied is followed by the next connection.

use std::time::Instant;

use anyhow::ensure;
use sidecar_tests::{
    DEADLINE, bench::statistics::percentile, kube::AT_ONCE, poll::poll_result, require_kube,
};

use crate::world::{DETAILS, SECRET, World};

/// How many edits are timed.
const EDITS: usize = 100;

#[test]
fn the_next_connection_follows_a_sidecar_that_is_applied() -> anyhow::Result<()> {
    require_kube!();
    let world = World::captured()?;
    let (mut since_accepted, mut since_typed) = (Vec::new(), Vec::new());
    for edit in 0..EDITS {
        let exposed = edit % 2 == 1;
        let typed = Instant::now();
        world.expose(if exposed { "prod-us1" } else { "other" })?;
        let accepted = Instant::now();
        poll_result(DEADLINE, "a connection to follow", || {
            ensure!(world.reaches(DETAILS)? == exposed, "not yet");
            Ok(())
        })?;
        since_accepted.push(accepted.elapsed().as_secs_f64() * 1e3);
        since_typed.push(typed.elapsed().as_secs_f64() * 1e3);
    }
    ensure!(!world.reaches(SECRET)?, "what is not exposed is reached");
    let of = |times: &[f64], percent| percentile(times, percent).map_or(f64::NAN, |of| of.value);
    println!(
        "{EDITS} edits by kubectl: ms from its end until a connection follows: p50 {:.1}, p99 {:.1}; \
         from its start: p50 {:.1}, p99 {:.1}",
        of(&since_accepted, 50),
        of(&since_accepted, 99),
        of(&since_typed, 50),
        of(&since_typed, 99),
    );
    let p99 = of(&since_accepted, 99);
    ensure!(p99 < AT_ONCE.as_secs_f64() * 1e3, "p99 is {p99} ms");
    Ok(())
}

/// The API server takes it, as its schema says nothing of hosts; Istio's rules do not.
#[test]
fn the_last_good_version_of_a_bad_sidecar_stays() -> anyhow::Result<()> {
    require_kube!();
    let world = World::captured()?;
    let agent = world.lab.agent()?;
    world.expose("no/such")?;
    let status = agent.wait_until("the bad Sidecar to be told", |status| {
        status["diagnostics"]
            .as_array()
            .is_some_and(|all| all.iter().any(|of| of["code"] == "SCA0009"))
    })?;
    let told = status["diagnostics"].to_string();
    ensure!(
        told.contains("Sidecar prod-us1/default (cluster)"),
        "{told}"
    );
    ensure!(world.reaches(DETAILS)?, "its last good version is gone");
    ensure!(!world.reaches(SECRET)?, "everything is reached");
    world.expose("other")?;
    poll_result(DEADLINE, "the good one to be followed", || {
        ensure!(!world.reaches(DETAILS)?, "not yet");
        Ok(())
    })
}

/// Files and the cluster together: what a file says of the same resource counts.
#[test]
fn files_may_be_used_beside_the_cluster() -> anyhow::Result<()> {
    require_kube!();
    let mut world = World::bare()?;
    world.api.add_crds()?;
    world.add_workload()?;
    world.expose("other")?;
    let agent = sidecar_tests::Agent::with_kubeconfig(&world.api.kubeconfig())
        .env("SIDECAR_AGENT_CONFIG", world.lab.config_dir());
    world.lab.start_another_agent(agent)?;
    world.lab.wait_captured()?;
    ensure!(
        !world.reaches(DETAILS)?,
        "the cluster's Sidecar is not followed"
    );
    let sidecar = crate::world::sidecar(&["prod-us1"]);
    world.lab.write("sidecar.yaml", &sidecar)?;
    ensure!(world.reaches(DETAILS)?, "the file is not followed");
    std::fs::remove_file(world.lab.config_dir().join("sidecar.yaml"))?;
    poll_result(
        DEADLINE,
        "the cluster's Sidecar to be followed again",
        || {
            ensure!(!world.reaches(DETAILS)?, "not yet");
            Ok(())
        },
    )
}
