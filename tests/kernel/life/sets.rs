//! Maps that cannot be used: others are made beside them.

use std::fs;

use aya::maps::{Array, Map, MapData};
use sidecar_agent::dataplane::uninstall::inventory;
use sidecar_common::{ABI, values::Meta};
use sidecar_tests::require_root;

use super::{Life, OTHER, denied, names};
use crate::{
    fixture::CAPACITY,
    plan::{Planner, pass},
};

#[test]
fn maps_that_cannot_be_used_decide_until_others_do() -> anyhow::Result<()> {
    require_root!();
    let mut life = Life::new()?;
    let workload = life.workload;
    let first = life.loaded.maps_dir();
    life = life.restart(OTHER)?;
    let second = life.loaded.pin_dir().join("set-2");
    assert!(first.exists() && second.exists());
    life.is_refused()?;
    assert_eq!(life.attach()?, workload, "another slot");
    life.is_refused()?;
    assert_eq!(life.loaded.dataplane.in_force(workload), None);
    // Ended before it decides: the next one goes on from there.
    life = life.restart(OTHER)?;
    life.is_refused()?;
    life.attach()?;
    life.is_refused()?;
    life.follow(Planner::new().outbound_default(pass()))?;
    // For a while: a connection may be between two of the old programs.
    let old = inventory(&life.loaded.pin_dir())?.links;
    let mut old = old.iter().filter_map(|link| link.pin.as_ref());
    assert!(old.any(|pin| pin.starts_with(&first)), "detached at once");
    life.passes()?;
    life.follow(denied())?;
    life.is_refused()?;
    life.is_removed(&first)?;
    assert_eq!(life.link_ids()?.len(), 11);
    life = life.restart(OTHER)?;
    assert!(!life.loaded.pin_dir().join("set-3").exists(), "not adopted");
    life.is_refused()
}

/// Each is what an agent of another version, or one that was ended early, has left.
#[test]
fn maps_of_another_abi_and_unfinished_ones_are_not_used() -> anyhow::Result<()> {
    require_root!();
    for abi in [Some(ABI + 1), None] {
        let mut life = Life::new()?;
        let first = life.loaded.maps_dir();
        let meta = first.join("META");
        match abi {
            Some(abi) => {
                let map = Map::Array(MapData::from_pin(&meta)?);
                Array::<_, Meta>::try_from(map)?.set(0, Meta { abi, set: 1 }, 0)?;
            }
            None => fs::remove_file(&meta)?,
        }
        life = life.restart(CAPACITY)?;
        let sets = ["WORKLOADS", "set-1", "set-2"];
        assert_eq!(names(&life.loaded.pin_dir())?, sets, "{abi:?}");
        life.is_refused()?;
        life.attach()?;
        life.is_refused()?;
        life.follow(denied())?;
        life.is_refused()?;
        life.is_removed(&first)?;
    }
    Ok(())
}
