//! Pods that come and go.

use std::thread;

use anyhow::{anyhow, ensure};
use serde_json::{Value, json};
use sidecar_tests::{kube::patiently, require_kube};

use super::world::{Pod, SECRET, World};
use crate::pods::require_node;

const BATCHES: usize = 10;
const BATCH: usize = 20;

/// Pods of a batch that start at the same time.
const AT_ONCE: usize = 4;

#[test]
fn two_hundred_pods_come_and_go_and_nothing_of_them_is_left() -> anyhow::Result<()> {
    require_kube!();
    require_node!();
    let world = World::with_agent()?;
    let before = entries(&world)?;
    for batch in 0..BATCHES {
        let names: Vec<String> = (0..BATCH).map(|of| format!("pod-{batch}-{of}")).collect();
        let pods = world.schedule_many(&names)?;
        let live = |pods: &[Pod]| pods.iter().try_for_each(|pod| live(&world, pod));
        thread::scope(|scope| {
            let parts = pods.chunks(BATCH / AT_ONCE);
            let workers: Vec<_> = parts.map(|part| scope.spawn(move || live(part))).collect();
            let mut ended = workers.into_iter();
            ended.try_for_each(|worker| worker.join().map_err(|_| anyhow!("it panicked"))?)
        })?;
        world.delete(&names)?;
    }
    patiently("everything to be as before", || {
        let now = entries(&world)?;
        ensure!(now == before, "{now} instead of {before}");
        Ok(())
    })
}

/// From the sandbox to its end. Who is captured cannot call what no Sidecar exposes.
fn live(world: &World, pod: &Pod) -> anyhow::Result<()> {
    let chain = world.chain(&json!({}));
    let args = pod.args(true);
    let result = chain.add(pod.sandbox(&args))?;
    ensure!(
        !world.first_call(pod, SECRET)?,
        "{}: the first connection passed",
        pod.name
    );
    chain.ask("DEL", &result, pod.sandbox(&args))
}

/// Workloads and pods, and how much of them is in the kernel.
fn entries(world: &World) -> anyhow::Result<Value> {
    let status = world.agent()?.status()?;
    Ok(json!({
        "workloads": status["workloads"],
        "pods": status["cluster"]["pods"],
        "kernel": world.in_kernel()?,
    }))
}
