//! What is another's in our pin directory.

use std::fs;

use anyhow::{Context as _, ensure};
use sidecar_agent::dataplane::default_pin_dir;
use sidecar_tests::{Bpffs, DEADLINE, poll::poll_result, require_root};

use super::{CALLED, Life, denied, names, stranger};
use crate::{
    fixture::{CAPACITY, Loaded},
    plan::at,
    uninstall::uninstalled,
};

#[test]
fn broken_pins_are_replaced_and_anothers_are_left_alone() -> anyhow::Result<()> {
    require_root!();
    let mut life = Life::new()?;
    let first = life.loaded.maps_dir();
    let pins = life.loaded.pin_dir();
    fs::remove_file(first.join("PLANS"))?;
    stranger(&first.join("PLANS"))?;
    stranger(&pins.join("theirs"))?;
    stranger(&first.join("workload-1/theirs"))?;
    life = life.restart(CAPACITY)?;
    life.is_refused()?;
    life.attach()?;
    life.follow(denied())?;
    life.is_refused()?;
    poll_result(DEADLINE, "the broken set to be removed", || {
        life.loaded.dataplane.refresh();
        let left = names(&first)?;
        ensure!(left == ["PLANS", "workload-1"], "{left:?}");
        Ok(())
    })?;
    assert_eq!(names(&first.join("workload-1"))?, ["theirs"]);
    assert_eq!(names(&pins)?, ["WORKLOADS", "set-1", "set-2", "theirs"]);
    life.is_refused()?;

    let Life { loaded, app, .. } = life;
    let Loaded { dataplane, bpffs } = loaded;
    drop(dataplane);
    let removed = uninstalled(&pins)?;
    assert_eq!(removed.strangers.len(), 3, "{removed:?}");
    assert_eq!(names(&pins)?, ["set-1", "theirs"]);
    app.visit(at(CALLED))?.context("still captured")?;
    drop(bpffs);
    Ok(())
}

#[test]
fn a_map_of_anothers_in_the_place_of_the_shared_one_is_refused() -> anyhow::Result<()> {
    require_root!();
    let bpffs = Bpffs::temporary()?;
    let pins = default_pin_dir(bpffs.path());
    fs::create_dir(&pins)?;
    stranger(&pins.join("WORKLOADS"))?;
    let Err(error) = Loaded::at(bpffs, CAPACITY) else {
        anyhow::bail!("it was used");
    };
    let error = format!("{error:#}");
    assert!(error.contains("move it out of the way"), "{error}");
    Ok(())
}
