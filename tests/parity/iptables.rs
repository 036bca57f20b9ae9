//! The vectors by real connections. Real iptables does what was measured: this is what the other
//! tests here compare with. The agent's programs do the same, but for what is listed.

use std::fs;

use anyhow::ensure;
use sidecar_agent::conformance::{
    Outcome,
    iptables::{
        cases,
        deviations::{self, Deviations},
    },
};
use sidecar_tests::{
    interception::{
        Both, Iptables, Observer, Ours, Side,
        conformance::{self, Compare},
    },
    require_root,
};

fn check<S: Side>(side: S, compare: Compare, deviate: bool) -> anyhow::Result<()> {
    let cases = concat!(env!("CARGO_MANIFEST_DIR"), "/cases");
    let read = |name: &str| fs::read_to_string(format!("{cases}/{name}"));
    let file = cases::read(&read("iptables-cases.yaml")?)?;
    let mut observer = Observer::new(side)?;
    let mut results = conformance::run(&mut observer, &file, compare)?;
    ensure!(results.len() == file.cases.len(), "cases were passed over");
    if deviate {
        results = Deviations::read(&read(deviations::FILE)?, &file)?.apply(results);
    }
    let mut failed = 0;
    for result in &results {
        if let Outcome::Failed(why) = &result.outcome {
            println!("FAILED {}: {why}", result.name);
            failed += 1;
        }
    }
    ensure!(failed == 0, "{failed} of {} failed", results.len());
    Ok(())
}

#[test]
fn every_vector_by_real_iptables() -> anyhow::Result<()> {
    require_root!();
    check(Iptables::new()?, Compare::All, false)
}

#[test]
fn every_vector_by_the_agents_programs() -> anyhow::Result<()> {
    require_root!();
    check(Ours::new()?, Compare::WithoutNat, true)
}

/// A pod with both: what leaves it is captured once, and as by either alone. What arrives is led to the
/// proxy's port by iptables before the programs see it, and where it was going is lost to them, as
/// docs/migration.md tells.
#[test]
fn both_in_one_pod_agree_on_what_leaves_it() -> anyhow::Result<()> {
    require_root!();
    let cases = concat!(env!("CARGO_MANIFEST_DIR"), "/cases/iptables-cases.yaml");
    let file = cases::read(&fs::read_to_string(cases)?)?;
    let mut observer = Observer::new(Both::new()?)?;
    let results = conformance::run(&mut observer, &file, Compare::WithoutNat)?;
    ensure!(results.len() == file.cases.len(), "cases were passed over");
    let mut inbound = 0;
    for result in &results {
        if let Outcome::Failed(why) = &result.outcome {
            let case = file.cases.iter().find(|case| case.id == result.name);
            let arrives = case.is_some_and(|case| case.direction == cases::Direction::Inbound);
            ensure!(arrives, "{}: {why}", result.name);
            inbound += 1;
        }
    }
    ensure!(inbound > 0, "all is well: docs/migration.md says otherwise");
    Ok(())
}
