//! What is taken away is this agent's, and nothing else.

use std::fs;

use sidecar_agent::dataplane::uninstall::{inventory, uninstall};
use sidecar_tests::{
    DEADLINE,
    foreign::{Foreign, Hook},
    poll::poll_result,
    require_root,
};

use crate::{
    fixture::{Fixture, Loaded, link_info},
    plan::{Planner, deny},
};

/// Neither its program's name makes a link ours, nor the place of its pin.
#[test]
fn links_that_look_like_ours_are_told_and_left_alone() -> anyhow::Result<()> {
    require_root!();
    let Fixture { loaded, cgroup, .. } = Fixture::new(Planner::new().outbound_default(deny()))?;
    let path = cgroup.path();
    let pins = loaded.pin_dir();
    let pin = loaded.maps_dir().join("workload-1/recvmsg6");
    fs::remove_file(&pin)?;
    let foreign = [
        Foreign::link(path, Hook::Connect4, "foreign", None)?,
        Foreign::link(path, Hook::Connect4, "connect4", None)?,
        Foreign::link(path, Hook::Recvmsg6, "recvmsg6", Some(&pin))?,
    ];
    let theirs: Vec<u32> = foreign.iter().filter_map(Foreign::link_id).collect();
    assert_eq!(theirs.len(), 3);
    let found = inventory(&pins)?;
    assert_eq!(found.links.len(), 10, "{:?}", found.links);
    assert_eq!(found.strangers, [pin.clone()]);
    let told = found.links.iter().chain(&found.orphans);
    let mut told = told.map(|link| link.id);
    assert!(!told.any(|id| theirs.contains(&id)), "taken for ours");

    let Loaded { dataplane, bpffs } = loaded;
    drop(dataplane);
    // As soon as the pins are free, see `Loaded::again`.
    let removed = poll_result(DEADLINE, "the pins to be free", || uninstall(&pins))?;
    assert_eq!(removed.links.len(), 10);
    assert_eq!(removed.strangers, [pin.clone()]);
    drop(foreign);
    assert_eq!(link_info(&pin)?.id(), theirs[2], "another's link is gone");
    assert!(inventory(&pins)?.links.is_empty());
    drop(bpffs);
    Ok(())
}
