//! The API server is gone for a while, or the agent.

use anyhow::ensure;
use sidecar_tests::{
    kube::patiently,
    require_kube,
    scrape::{Page, get},
};

use crate::world::{DETAILS, SECRET, World};

fn stale(world: &World) -> anyhow::Result<f64> {
    let scrape = Page::of(world.lab.agent()?)?;
    let stale = scrape.sum("sidecar_agent_cluster_stale_seconds", &[]);
    stale.ok_or_else(|| anyhow::anyhow!("there is no such metric"))
}

fn up_to_date(world: &World) -> anyhow::Result<()> {
    patiently("the cluster to be up to date", || {
        let cluster = world.cluster()?;
        ensure!(cluster["stale_seconds"].is_null(), "{cluster}");
        Ok(())
    })
}

fn is_as_it_was(world: &World) -> anyhow::Result<()> {
    ensure!(world.reaches(DETAILS)?, "what was exposed is not any more");
    ensure!(!world.reaches(SECRET)?, "it is not captured any more");
    Ok(())
}

/// Also the agent may start again meanwhile: nothing of what is captured is let go.
#[test]
fn what_is_known_stays_while_the_api_server_is_gone() -> anyhow::Result<()> {
    require_kube!();
    let mut world = World::captured()?;
    up_to_date(&world)?;
    ensure!(stale(&world)? == 0.0, "stale although it is up to date");
    world.api.stop_server()?;
    patiently("the age to be told", || {
        let age = stale(&world)?;
        ensure!(age > 0.0, "it is {age}");
        Ok(())
    })?;
    patiently("the agent not to be ready", || {
        let ready = get(world.lab.agent()?, "/readyz")?;
        ensure!(ready.body.contains("cluster"), "{}", ready.body);
        Ok(())
    })?;
    is_as_it_was(&world)?;
    let workload = &world.lab.agent()?.status()?["workloads"][0];
    ensure!(workload["state"] == "captured", "{workload}");

    world.lab.agent_mut()?.kill()?;
    world.lab.agent_mut()?.start()?;
    let cluster = world.cluster()?;
    ensure!(cluster["listed"] == false, "{cluster}");
    ensure!(!world.reaches(SECRET)?, "let go before anything was known");

    world.api.start_server()?;
    up_to_date(&world)?;
    world.lab.wait_captured()?;
    is_as_it_was(&world)?;
    world.expose("other")?;
    patiently("changes to be followed again", || {
        ensure!(!world.reaches(DETAILS)?, "not yet");
        Ok(())
    })
}

/// The agent's resource version is too old for a watch to go on from: it lists anew, and what
/// changed meanwhile is followed.
#[test]
fn history_that_is_forgotten_is_made_up_for() -> anyhow::Result<()> {
    require_kube!();
    let mut world = World::captured()?;
    world.api.stop_server()?;
    world.api.start_server_hidden()?;
    world.expose("other")?;
    // More history than one change.
    for round in 0..5 {
        let round = format!("round={round}");
        let args = ["label", "namespace", "prod-us1", "--overwrite", &round];
        world.api.kubectl(&args)?;
    }
    ensure!(
        world.reaches(DETAILS)?,
        "it knew of a server that it cannot know"
    );
    world.api.stop_server()?;
    world.api.forget_history()?;
    world.api.start_server()?;
    patiently("what changed meanwhile to be followed", || {
        ensure!(
            !world.reaches(SECRET)?,
            "nothing is captured while it is listed anew"
        );
        ensure!(!world.reaches(DETAILS)?, "not yet");
        Ok(())
    })?;
    up_to_date(&world)
}

#[test]
fn an_agent_that_starts_again_keeps_what_is_captured() -> anyhow::Result<()> {
    require_kube!();
    let mut world = World::captured()?;
    for kill in [true, false] {
        let agent = world.lab.agent_mut()?;
        if kill {
            agent.kill()?;
        } else {
            agent.stop()?;
        }
        agent.start()?;
        // All the time until it knows the cluster, and then.
        patiently("the agent to have applied what the cluster says", || {
            is_as_it_was(&world)?;
            let status = world.lab.agent()?.status()?;
            ensure!(status["generation"].as_u64() > Some(0), "{status}");
            Ok(())
        })?;
    }
    Ok(())
}
