//! Runs the vectors of `tests/cases/iptables-cases.yaml` by real connections.

use std::collections::BTreeMap;

use anyhow::Context as _;
use sidecar_agent::conformance::{
    CaseResult,
    iptables::cases::{Case, File, OptionSet},
};

use super::{Attempt, Observed, Observer, Side};

/// What is compared of a captured connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compare {
    /// All that a case says.
    All,
    /// Not the local address under `REDIRECT`: without NAT it is another.
    WithoutNat,
}

/// Runs all cases, each option set once.
///
/// # Errors
/// When a process that the test needs fails: what a connection meets is the result of a case.
pub fn run<S: Side>(
    observer: &mut Observer<S>,
    file: &File,
    compare: Compare,
) -> anyhow::Result<Vec<CaseResult>> {
    let mut by_options: BTreeMap<&str, Vec<&Case>> = BTreeMap::new();
    for case in &file.cases {
        by_options.entry(&case.options).or_default().push(case);
    }
    let mut results = Vec::new();
    for (name, cases) in by_options {
        let options = file
            .option_sets
            .get(name)
            .with_context(|| format!("there is no option set {name}"))?;
        observer
            .load(options)
            .with_context(|| format!("option set {name}"))?;
        for case in cases {
            let attempt = Attempt::try_from(case)?;
            let outcome = observer.observe(&attempt)?;
            results.push(CaseResult {
                name: case.id.clone(),
                outcome: check(case, options, &outcome, compare)
                    .map_err(|why| format!("{attempt}: {why}"))
                    .into(),
            });
        }
    }
    Ok(results)
}

/// Whether what was observed is what the case says.
fn check(
    case: &Case,
    options: &OptionSet,
    observed: &Observed,
    compare: Compare,
) -> Result<(), String> {
    let as_expected = match observed {
        Observed::Captured {
            to_port,
            original_dst,
            local,
            peer,
            caller: _,
        } => {
            let local_counts = compare == Compare::All || options.interception_mode == "TPROXY";
            case.captured
                && case.to_port == Some(*to_port)
                && case.original_dst == *original_dst
                && case.peer_addr_seen == Some(*peer)
                && (!local_counts || case.local_addr_seen == *local)
        }
        Observed::NotCaptured { .. } => !case.captured,
        _ => false,
    };
    if as_expected {
        return Ok(());
    }
    let expected = if case.captured {
        format!(
            "captured by {:?}, original destination {:?}, local {:?}, peer {:?}",
            case.to_port, case.original_dst, case.local_addr_seen, case.peer_addr_seen
        )
    } else {
        "not captured".to_owned()
    };
    Err(format!("expected {expected}; observed {observed:?}"))
}
