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

/// A pod on its way from one to the other may have both for a while.
#[test]
fn every_vector_by_both() -> anyhow::Result<()> {
    require_root!();
    check(Both::new()?, Compare::WithoutNat, true)
}
