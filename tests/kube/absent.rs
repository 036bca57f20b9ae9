//! Kinds that the API server does not have (yet).

use anyhow::ensure;
use sidecar_tests::{kube::patiently, require_kube};

use crate::world::{DETAILS, World};

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
    let cluster = world.cluster()?.to_string();
    ensure!(
        cluster.contains("sidecars.networking.istio.io/v1\""),
        "not the newest version: {cluster}"
    );
    Ok(())
}
