//! How far the programs are from the verifier's limit.

use std::collections::BTreeMap;

use sidecar_tests::require_root;

use crate::{fixture::Fixture, plan::Planner};

/// The verifier gives up after a million instructions. What later kernels cost more, and what is
/// still to come, must fit as well.
const LIMIT: u32 = 600_000;

/// Where the programs that decide are attached.
const DECIDING: [&str; 5] = ["connect4", "connect6", "sendmsg4", "sendmsg6", "inbound"];

#[test]
fn the_verifier_has_room_left() -> anyhow::Result<()> {
    require_root!();
    let _fixture = Fixture::new(Planner::new())?;
    let mut verified: BTreeMap<String, u32> = BTreeMap::new();
    for program in aya::programs::loaded_programs() {
        let program = program?;
        let name = program.name_as_str().unwrap_or_default().to_owned();
        if DECIDING.contains(&&*name) {
            // Other tests have the same programs.
            let instructions = program.verified_instruction_count().unwrap_or_default();
            verified.insert(name, instructions);
        }
    }
    eprintln!("verified instructions: {verified:?}");
    assert_eq!(verified.len(), DECIDING.len(), "{verified:?}");
    for (name, instructions) in verified {
        assert!(instructions > 0, "kernel 5.16 and newer tell the number");
        assert!(instructions < LIMIT, "{name}: {instructions}");
    }
    Ok(())
}
