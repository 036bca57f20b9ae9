//! Kinds that the API server does not have (yet).

use anyhow::ensure;
use sidecar_tests::{kube::patiently, require_kube};

use crate::world::{DETAILS, SECRET, World};

/// Waits until Sidecars are followed in this version.
fn follows(world: &World, version: &str) -> anyhow::Result<()> {
    let resource = format!("\"sidecars.networking.istio.io/{version}\"");
    patiently("another version to be followed", || {
        let cluster = world.cluster()?.to_string();
        ensure!(cluster.contains(&resource), "no {resource}: {cluster}");
        Ok(())
    })
}

#[test]
fn kinds_may_be_added_later() -> anyhow::Result<()> {
    require_kube!();
    let mut world = World::bare()?;
    world.start_agent()?;
    let agent = world.lab.agent()?;
    let status = agent.wait_until("the cluster to be listed without them", |status| {
        status["cluster"]["listed"] == true && status["generation"].as_u64() > Some(0)
    })?;
    let of = |kind: &str| {
        let kinds = status["cluster"]["kinds"].as_array();
        kinds.and_then(|kinds| kinds.iter().find(|of| of["kind"] == kind).cloned())
    };
    let sidecars = of("Sidecar").unwrap_or_default();
    ensure!(sidecars["resource"].is_null(), "{sidecars}");
    ensure!(sidecars["problem"].is_null(), "{sidecars}");
    world.api.add_crds()?;
    world.add_workload()?;
    world.expose("other")?;
    patiently("the new kinds to be followed", || {
        ensure!(!world.reaches(DETAILS)?, "not yet");
        Ok(())
    })?;
    // The API server serves the versions of a new kind one after the other.
    follows(&world, "v1")
}

/// As with an upgrade of the mesh.
#[test]
fn a_newer_version_that_is_served_later_is_followed() -> anyhow::Result<()> {
    require_kube!();
    let mut world = World::bare()?;
    let serve = |world: &World, newest: bool| {
        let patch = format!(
            "--patch=[{{\"op\": \"replace\", \"path\": \"/spec/versions/0/served\", \"value\": {newest}}}]"
        );
        let crd = "sidecars.networking.istio.io";
        world
            .api
            .kubectl(&["patch", "crd", crd, "--type=json", &patch])
    };
    world.api.add_crds()?;
    world.add_workload()?;
    world.expose("prod-us1")?;
    serve(&world, false)?;
    world.start_agent()?;
    world.lab.wait_captured()?;
    follows(&world, "v1beta1")?;
    serve(&world, true)?;
    follows(&world, "v1")?;
    ensure!(world.reaches(DETAILS)?, "what is exposed is not reached");
    ensure!(!world.reaches(SECRET)?, "what is not exposed is reached");
    world.expose("other")?;
    patiently("a change to be followed", || {
        ensure!(!world.reaches(DETAILS)?, "not yet");
        Ok(())
    })
}
