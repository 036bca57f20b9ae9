//! What the figures come to, in one table.

use std::{fs, path::Path, time::Duration};

use peak_alloc::PeakAlloc;
use sidecar_agent::{compile::Compiler, model::Snapshot};

use crate::world::{NODE, mesh};

/// Memory of a compiled node, in MiB.
pub struct Memory {
    snapshot: f32,
    compiled: f32,
    peak: f32,
}

/// What is asked for: the name of the group and of the benchmark, and the time it may take.
const TARGETS: [(&str, &str, Duration); 4] = [
    ("everything", "sidecars", Duration::from_secs(1)),
    ("one change", "a sidecar", Duration::from_millis(10)),
    ("one change", "a service", Duration::from_millis(10)),
    (
        "one change",
        "a service more or less",
        Duration::from_millis(10),
    ),
];

const MEMORY_TARGET: f32 = 100.0;

/// Says what is compiled.
pub fn shape(snapshot: &Snapshot) {
    let node = Compiler::default().plans(snapshot);
    let plans = node.workloads.iter();
    let rules: usize = plans.map(|of| of.plan.outbound.exact.len()).sum();
    println!(
        "{} services, {} service entries, {} Sidecars; {} workloads with {rules} outbound rules; \
         {} findings",
        snapshot.services.len(),
        snapshot.service_entries.len(),
        snapshot.sidecars.len(),
        node.workloads.len(),
        node.findings.len()
    );
}

/// Compiles a node and looks what that takes.
pub fn memory(allocator: PeakAlloc) -> Memory {
    let before = allocator.current_usage_as_mb();
    let snapshot = mesh(NODE);
    let with_snapshot = allocator.current_usage_as_mb();
    allocator.reset_peak_usage();
    let mut compiler = Compiler::default();
    let node = compiler.plans(&snapshot);
    let memory = Memory {
        snapshot: with_snapshot - before,
        compiled: allocator.current_usage_as_mb() - with_snapshot,
        peak: allocator.peak_usage_as_mb() - before,
    };
    drop(node);
    memory
}

/// Prints all figures of this run, and how they compare with the targets.
pub fn table(results: &Path, memory: &Memory, growth: &[(&str, Vec<usize>)]) {
    println!("\n{:<12} {:<24} {:>10}  target", "", "", "median");
    for (group, name, limit) in TARGETS {
        if let Some(median) = median(results, group, name) {
            let verdict = if median <= limit { "met" } else { "MISSED" };
            println!("{group:<12} {name:<24} {median:>10.1?}  {limit:?} {verdict}");
        }
    }
    for (group, name) in [
        ("everything", "no sidecars"),
        ("one change", "nothing"),
        ("one change", "a workload more or less"),
        ("one change", "a service that all see"),
        ("one change", "the lines of all services"),
        ("one change", "a service, no sidecars"),
    ] {
        if let Some(median) = median(results, group, name) {
            println!("{group:<12} {name:<24} {median:>10.1?}");
        }
    }
    let Memory {
        snapshot,
        compiled,
        peak,
    } = memory;
    let verdict = if *peak <= MEMORY_TARGET {
        "met"
    } else {
        "MISSED"
    };
    println!(
        "{:<12} {:<24} {peak:>6.1} MiB  {MEMORY_TARGET} MiB {verdict} (snapshot {snapshot:.1}, \
         compiled {compiled:.1})",
        "memory", "peak"
    );
    for (of, sizes) in growth {
        let times = sizes
            .iter()
            .filter_map(|size| median(results, of, &size.to_string()).map(|time| (*size, time)));
        let times: Vec<(usize, Duration)> = times.collect();
        let [(least, at_least), .., (most, at_most)] = times[..] else {
            continue;
        };
        for (size, time) in &times {
            println!("{:<12} {size:<24} {time:>10.1?}", format!("{of}"));
        }
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let more = most as f64 / least as f64;
        println!(
            "{of:<12} {:<24} {:>9.1}x  {more}x, linear",
            format!("{least} -> {most}"),
            at_most.as_secs_f64() / at_least.as_secs_f64()
        );
    }
}

/// The median that criterion wrote; `None`: it was not run.
fn median(results: &Path, group: &str, name: &str) -> Option<Duration> {
    let path = results.join(group).join(name).join("new/estimates.json");
    let text = fs::read_to_string(path).ok()?;
    let estimates: serde_json::Value = serde_json::from_str(&text).ok()?;
    let nanoseconds = estimates.pointer("/median/point_estimate")?.as_f64()?;
    Some(Duration::from_secs_f64(nanoseconds / 1e9))
}
