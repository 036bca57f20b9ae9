//! How long a pod waits for ADD.

use anyhow::{Context as _, ensure};
use serde_json::json;
use sidecar_tests::{bench::statistics::percentile, require_kube};

use super::world::{PATIENCE, World};
use crate::pods::require_node;

/// How many pods start, one after the other.
const PODS: usize = 60;

#[test]
fn pods_wait_for_a_moment_only() -> anyhow::Result<()> {
    require_kube!();
    require_node!();
    let world = World::with_agent()?;
    let names: Vec<String> = (0..PODS).map(|number| format!("shop-{number}")).collect();
    let pods = world.schedule_many(&names)?;
    let chain = world.chain(&json!({}));
    let mut took = Vec::new();
    for pod in &pods {
        let args = pod.args(true);
        let (_, times) = chain.add_timed(pod.sandbox(&args))?;
        took.push(times.last().context("no plugin")?.as_secs_f64() * 1e3);
    }
    let of = |percent| percentile(&took, percent).map_or(f64::NAN, |of| of.value);
    println!(
        "{PODS} pods: ADD of the plugin took ms: p50 {:.1}, p99 {:.1}",
        of(50),
        of(99)
    );
    let slowest = took.iter().copied().fold(0.0, f64::max);
    ensure!(slowest < PATIENCE.as_secs_f64() * 1e3, "{slowest} ms");
    Ok(())
}
