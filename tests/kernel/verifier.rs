//! How far the programs are from the verifier's limit.

use std::collections::BTreeMap;

use aya::maps::MapData;
use sidecar_tests::{require_root, skip};

use crate::{fixture::Fixture, plan::Planner};

/// The verifier gives up after a million instructions. What later kernels cost more, and what is
/// still to come, must fit as well.
const LIMIT: u32 = 400_000;

/// Where the programs that decide are attached.
const DECIDING: [&str; 5] = ["connect4", "connect6", "sendmsg4", "sendmsg6", "inbound"];

#[test]
fn the_verifier_has_room_left() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::new(Planner::new())?;
    // Others, of this and of older builds, have programs of the same names.
    let plans = MapData::from_pin(fixture.loaded.maps_dir().join("PLANS"))?;
    let plans = plans.info()?.id();
    let mut verified: BTreeMap<String, u32> = BTreeMap::new();
    for program in aya::programs::loaded_programs() {
        let Ok(program) = program else {
            // Gone meanwhile.
            continue;
        };
        let name = program.name_as_str().unwrap_or_default().to_owned();
        let maps = program.map_ids().ok().flatten().unwrap_or_default();
        if DECIDING.contains(&&*name) && maps.contains(&plans) {
            let instructions = program.verified_instruction_count().unwrap_or_default();
            verified.insert(name, instructions);
        }
    }
    eprintln!("verified instructions: {verified:?}");
    assert_eq!(verified.len(), DECIDING.len(), "{verified:?}");
    if verified.values().all(|instructions| *instructions == 0) {
        skip!("the kernel (before 5.16) tells no numbers of verified instructions");
    }
    for (name, instructions) in verified {
        assert!(instructions > 0, "{name}");
        assert!(instructions < LIMIT, "{name}: {instructions}");
    }
    Ok(())
}
