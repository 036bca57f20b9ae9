//! How soon new connections follow when an operator turns capture off and on.

use super::{Bench, metric::Metric, statistics::percentile};
use crate::soak::{Toggles, World};

/// Measures it on the node of the soak, without load.
///
/// # Errors
/// When the agent does not do it.
pub fn measure(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let world = World::new()?;
    let mut toggles = Toggles::default();
    toggles.measure(&world, bench.plan.toggles)?;
    let taken: Vec<f64> = toggles
        .taken()
        .iter()
        .map(|time| time.as_secs_f64() * 1e3)
        .collect();
    for (name, percent) in [("toggle_ms.p50", 50), ("toggle_ms.p99", 99)] {
        if let Some(time) = percentile(&taken, percent) {
            bench.add(Metric::new(name, "ms", time));
        }
    }
    Ok(())
}
