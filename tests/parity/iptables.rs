//! Real iptables does what was measured: this is what the other tests here compare with.

use std::fs;

use anyhow::ensure;
use sidecar_agent::conformance::{Outcome, iptables::cases};
use sidecar_tests::{
    interception::{
        Iptables, Observer,
        conformance::{self, Compare},
    },
    require_root,
};

#[test]
fn every_vector() -> anyhow::Result<()> {
    require_root!();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/cases/iptables-cases.yaml");
    let file = cases::read(&fs::read_to_string(path)?)?;
    let mut observer = Observer::new(Iptables::new()?)?;
    let results = conformance::run(&mut observer, &file, Compare::All)?;
    ensure!(results.len() == file.cases.len(), "cases were passed over");
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
