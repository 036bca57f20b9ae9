//! What is taken away is this agent's, and nothing else.

use std::{fs, path::Path};

use rustix::io::Errno;
use sidecar_agent::dataplane::uninstall::{Inventory, inventory, uninstall};
use sidecar_tests::{
    Cgroup, DEADLINE, Place, Probe,
    foreign::{Foreign, Hook},
    poll::poll_result,
    require_root,
};

use crate::{
    fixture::{Fixture, Loaded, link_info, namespace, serve},
    plan::{Planner, at, deny},
};

const CALLED: &str = "10.1.0.1:80";

/// Uninstalls, as soon as the pins are free (see [`Loaded::again`]).
pub fn uninstalled(pins: &Path) -> anyhow::Result<Inventory> {
    poll_result(DEADLINE, "the pins to be free", || uninstall(pins))
}

/// Another agent's programs are on the same cgroup, and stay there.
#[test]
fn uninstalled_nothing_is_left_but_what_is_anothers() -> anyhow::Result<()> {
    require_root!();
    let netns = namespace()?;
    let cgroup = Cgroup::new("workload")?;
    let (mut ours, mut theirs) = (Loaded::new()?, Loaded::new()?);
    let outside = Place::here().netns(&netns);
    let _server = serve(outside, "0.0.0.0:80", "server")?;
    let app = Probe::start(outside.cgroup(&cgroup))?;
    let other = "10.1.0.2:80";
    for (loaded, refuses) in [(&mut ours, CALLED), (&mut theirs, other)] {
        let workload = loaded.attach(&cgroup, &netns)?;
        loaded.follow(workload, Planner::new().outbound(refuses, deny()).build())?;
    }
    let refused = |address| -> anyhow::Result<bool> {
        Ok(app.visit(at(address))? == Err(Errno::CONNREFUSED))
    };
    assert!(refused(CALLED)? && refused(other)?);

    let pins = ours.pin_dir();
    let error = format!("{:#}", uninstall(&pins).unwrap_err());
    assert!(error.contains("another agent uses it"), "{error}");
    let Loaded { dataplane, bpffs } = ours;
    drop(dataplane);
    let found = inventory(&pins)?;
    assert_eq!(found.links.len(), 11);
    assert!(refused(CALLED)?, "looking has removed something");
    let of_theirs = inventory(&theirs.pin_dir())?.links;
    for link in &of_theirs {
        let is_told = found.orphans.iter().any(|orphan| orphan.id == link.id);
        assert!(is_told, "{link:?}");
    }

    uninstalled(&pins)?;
    assert!(!refused(CALLED)?, "still captured");
    assert!(refused(other)?, "another's programs are gone");
    assert!(!pins.exists());
    assert_eq!(inventory(&pins)?.links.len(), 0);
    uninstall(&pins)?;
    drop(bpffs);
    Ok(())
}

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
    assert_eq!(found.strangers, std::slice::from_ref(&pin));
    let told = found.links.iter().chain(&found.orphans);
    let mut told = told.map(|link| link.id);
    assert!(!told.any(|id| theirs.contains(&id)), "taken for ours");

    let Loaded { dataplane, bpffs } = loaded;
    drop(dataplane);
    let removed = uninstalled(&pins)?;
    assert_eq!(removed.links.len(), 10);
    assert_eq!(removed.strangers, std::slice::from_ref(&pin));
    drop(foreign);
    assert_eq!(link_info(&pin)?.id(), theirs[2], "another's link is gone");
    assert!(inventory(&pins)?.links.is_empty());
    drop(bpffs);
    Ok(())
}
