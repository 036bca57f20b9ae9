//! What others count, in the words of the state.

use std::collections::BTreeMap;

use super::{DecisionCount, FindingCount, MapStatus, RelayStatus};
use crate::{
    dataplane::{Count, Usage},
    model::diagnostic::Diagnostic,
    relay::Stats,
};

impl From<Stats> for RelayStatus {
    fn from(stats: Stats) -> Self {
        Self {
            active: stats.active,
            accepted: stats.accepted,
            refused: stats.refused,
            limited: stats.limited,
            failed: stats.failed.total(),
            failed_by: stats
                .failed
                .by_cause()
                .map(|(cause, count)| (cause.to_owned(), count))
                .into(),
            fell_back: stats.fell_back,
            reset: stats.reset,
            accept_errors: stats.accept_errors,
            bytes_to_target: stats.bytes_to_target,
            bytes_to_client: stats.bytes_to_client,
        }
    }
}

/// Decisions as the dataplane counted them.
#[must_use]
pub fn decisions(counts: Vec<Count>) -> Vec<DecisionCount> {
    counts
        .into_iter()
        .map(|(direction, path, reason, count)| DecisionCount {
            direction: direction.name().into(),
            path: path.name().into(),
            reason: reason.name().into(),
            count,
        })
        .collect()
}

/// What the dataplane tells of its maps.
#[must_use]
pub fn maps(usage: Vec<Usage>, mut refused: BTreeMap<&'static str, u64>) -> Vec<MapStatus> {
    let known: Vec<MapStatus> = usage
        .into_iter()
        .map(|usage| MapStatus {
            map: usage.map.into(),
            entries: usage.entries,
            capacity: Some(usage.capacity),
            refused_updates: refused.remove(usage.map).unwrap_or_default(),
        })
        .collect();
    // What cannot be counted can still refuse.
    let others = refused.into_iter().map(|(map, refused_updates)| MapStatus {
        map: map.into(),
        entries: None,
        capacity: None,
        refused_updates,
    });
    known.into_iter().chain(others).collect()
}

/// How many findings there are, by severity and code.
#[must_use]
pub fn findings<'a>(diagnostics: impl IntoIterator<Item = &'a Diagnostic>) -> Vec<FindingCount> {
    let mut counts: BTreeMap<_, u64> = BTreeMap::new();
    for Diagnostic { severity, code, .. } in diagnostics {
        *counts.entry((*severity, *code)).or_default() += 1;
    }
    counts
        .into_iter()
        .map(|((severity, code), count)| FindingCount {
            severity: severity.name().into(),
            code: code.into(),
            count,
        })
        .collect()
}
