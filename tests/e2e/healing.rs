//! What others take away while the agent runs is put back.

use std::{fs, net::SocketAddr, path::PathBuf};

use anyhow::ensure;
use aya::maps::{Array, MapData, MapInfo};
use sidecar_tests::{
    Client, DEADLINE, foreign::detach_link, lab::Lab, poll::poll_result, require_root, scrape::Page,
};

use crate::fixture::registry_only;

/// What the Sidecar does not expose, and `REGISTRY_ONLY` refuses.
const REFUSED: &str = "10.96.0.4:9080";

const HEALED: &str = "sidecar_agent_healed_total";

fn is_refused(lab: &Lab) -> anyhow::Result<bool> {
    let called: SocketAddr = REFUSED.parse()?;
    let outcome = Client::tcp(called).place(lab.inside()).connect()?;
    Ok(!outcome.connected)
}

fn pin(lab: &Lab, name: &str) -> anyhow::Result<PathBuf> {
    let pins = lab.agent()?.bpffs().join("sidecar-agent");
    Ok(pins.join("set-1/workload-1").join(name))
}

fn is_refused_again(lab: &Lab) -> anyhow::Result<()> {
    poll_result(DEADLINE, "the workload to be captured again", || {
        ensure!(is_refused(lab)?, "it is not");
        Ok(())
    })
}

#[test]
fn a_link_that_is_detached_or_unpinned_is_attached_again() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent()?;
    ensure!(is_refused(&lab)?, "not captured");
    detach_link(&pin(&lab, "connect4")?)?;
    is_refused_again(&lab)?;
    let told = lab.agent()?.wait_log("attached again")?;
    ensure!(
        told.contains("prod-us1/productpage") && told.contains("connect4"),
        "{told}"
    );

    for name in ["connect4", "sk_lookup"] {
        fs::remove_file(pin(&lab, name)?)?;
    }
    lab.agent()?.wait_log("connect4, sk_lookup")?;
    is_refused_again(&lab)?;
    ensure!(pin(&lab, "sk_lookup")?.exists(), "not pinned again");
    let healed =
        |kind| Ok::<_, anyhow::Error>(Page::of(lab.agent()?)?.sum(HEALED, &[("kind", kind)]));
    ensure!(healed("link")? == Some(3.0), "{:?}", healed("link")?);
    ensure!(healed("map-pin")? == Some(0.0), "{:?}", healed("map-pin")?);
    fs::remove_file(pin(&lab, "../OUTBOUND")?)?;
    lab.agent()?.wait_log("pinned again")?;
    ensure!(healed("map-pin")? == Some(1.0), "{:?}", healed("map-pin")?);

    // Another's map in the place of ours is told, and left alone.
    let (pin, theirs) = (
        pin(&lab, "../OUTBOUND")?,
        lab.agent()?.bpffs().join("theirs"),
    );
    Array::<MapData, u32>::create(1, 0)?.pin(&theirs)?;
    let id = MapInfo::from_pin(&theirs)?.id();
    fs::rename(&theirs, &pin)?;
    let told = lab.agent()?.wait_log("something else is where the map")?;
    ensure!(told.contains("OUTBOUND"), "{told}");
    ensure!(MapInfo::from_pin(&pin)?.id() == id, "it was replaced");
    ensure!(is_refused(&lab)?, "let go");
    Ok(())
}

/// The next agent finds them.
#[test]
fn all_pins_that_are_removed_are_made_again() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent()?;
    fs::remove_dir_all(lab.agent()?.bpffs().join("sidecar-agent"))?;
    lab.agent()?.wait_log("pinned again")?;
    lab.agent()?.wait_log("attached again")?;
    is_refused_again(&lab)?;
    lab.agent_mut()?.kill()?;
    ensure!(is_refused(&lab)?, "it was not pinned");
    lab.agent_mut()?.start()?;
    lab.wait_captured()?;
    ensure!(is_refused(&lab)?, "not captured by the next agent");
    ensure!(pin(&lab, "connect4")?.exists(), "not adopted");
    Ok(())
}

/// As long as it cannot be attached, that is told; then it is.
#[test]
fn what_cannot_be_attached_again_is_told_until_it_can() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent()?;
    let pin = pin(&lab, "connect4")?;
    fs::remove_file(&pin)?;
    // In the way of the pin.
    fs::create_dir(&pin)?;
    let problem = |status: &serde_json::Value| {
        let problem = &status["workloads"][0]["problem"];
        problem.as_str().map(str::to_owned)
    };
    let status = lab
        .agent()?
        .wait_until("the damage to be told", |status| problem(status).is_some())?;
    let told = problem(&status).unwrap_or_default();
    ensure!(
        told.contains("connect4") && told.contains("detached"),
        "{told}"
    );
    fs::remove_dir(&pin)?;
    is_refused_again(&lab)?;
    lab.agent()?
        .wait_until("it to be told no more", |status| problem(status).is_none())?;
    Ok(())
}
