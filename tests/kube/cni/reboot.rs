//! The node restarts: what was in its kernel is gone, what the API server has of its pods is not.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use aya::programs::{loaded_links, loaded_programs};
use serde_json::{Value, json};
use sidecar_agent::dataplane::uninstall::inventory;
use sidecar_tests::{Agent, Cgroup, DEADLINE, kube::patiently, poll::poll_result, require_kube};

use super::world::{DETAILS, Pod, SECRET, World, wait_reaches};
use crate::pods::require_node;

/// Made anew by the runtime: while no agent runs, or once one does. Capture of the last one is off.
const PODS: [&str; 4] = ["missed", "first", "second", "off"];

#[test]
fn after_a_restart_of_the_node_its_pods_are_captured_again() -> anyhow::Result<()> {
    require_kube!();
    require_node!();
    let mut world = World::with_agent()?;
    let chain = json!({});
    let mut pods = Vec::new();
    let mut running = Vec::new();
    for name in PODS {
        let pod = world.schedule(name, true)?;
        running.push(world.start_pod(&pod, &world.chain(&chain))?);
        pods.push(pod);
    }
    let off = world.agent()?.cli(&["capture", "off", "prod-us1/off"])?;
    ensure!(off.status.success(), "{off:?}");
    for pod in &pods {
        wait_reaches(&world, pod, SECRET, pod.name == "off")?;
    }
    let before = state(&world)?;
    let programs = programs(world.agent()?)?;
    ensure!(programs.len() > PODS.len(), "{programs:?}");

    drop(running);
    world.agent_mut()?.lose_machine()?;
    let mut cgroups = BTreeSet::new();
    let mut again = Vec::new();
    for Pod {
        name, uid, netns, ..
    } in pods
    {
        cgroups.insert(cgroup_id(&world, &uid)?);
        world.node.remove_pod_cgroup(&uid)?;
        drop(netns);
        again.push((name, uid));
    }
    poll_result(DEADLINE, "what was attached to be gone", || {
        let left: Vec<u32> = loaded_programs()
            .flatten()
            .map(|of| of.id())
            .filter(|id| programs.contains(id))
            .collect();
        ensure!(left.is_empty(), "{left:?} are loaded still");
        Ok(())
    })?;

    // Kubelet makes the pods' cgroups and sandboxes anew. The API server has their old addresses.
    let accept = |(name, uid): &(String, String)| world.accept(name, uid);
    let pods = again
        .iter()
        .map(accept)
        .collect::<anyhow::Result<Vec<_>>>()?;
    for pod in &pods {
        let id = cgroup_id(&world, &pod.uid)?;
        ensure!(!cgroups.contains(&id), "the cgroup is that of before");
    }
    let mut running = Vec::new();
    let [missed, others @ ..] = &pods[..] else {
        anyhow::bail!("no pods")
    };
    let allow = world.chain(&json!({"agentAbsent": "allow"}));
    running.push(world.start_pod(missed, &allow)?);
    ensure!(world.first_call(missed, SECRET)?, "captured by nobody?");
    drop(allow);
    world.agent_mut()?.start()?;
    wait_reaches(&world, missed, SECRET, false)?;
    for pod in others {
        let args = pod.args(true);
        let result = world.chain(&chain).add(pod.sandbox(&args))?;
        let passes = world.first_call(pod, SECRET)?;
        ensure!(passes == (pod.name == "off"), "{}: {passes}", pod.name);
        let sleep = ["sleep", "infinity"];
        let id = crate::pods::uid();
        running.push(world.node.run(&pod.uid, &pod.netns, &id, &sleep)?);
        world.report(pod, super::world::address(&result)?)?;
    }
    for pod in &pods {
        wait_reaches(&world, pod, SECRET, pod.name == "off")?;
        ensure!(world.first_call(pod, DETAILS)?, "{} is cut off", pod.name);
    }
    patiently("everything to be as before", || {
        let now = state(&world)?;
        ensure!(now == before, "{now} instead of {before}");
        Ok(())
    })
}

fn cgroup_id(world: &World, uid: &str) -> anyhow::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let path = Cgroup::root()?.join(world.node.pod_cgroup(uid));
    Ok(std::fs::metadata(path)?.ino())
}

/// The programs that an agent's links hold.
fn programs(agent: &Agent) -> anyhow::Result<BTreeSet<u32>> {
    let pinned = inventory(&agent.bpffs().join("sidecar-agent"))?.links;
    let pinned: BTreeSet<u32> = pinned.iter().map(|link| link.id).collect();
    let links = loaded_links().flatten();
    let of_agent = links.filter(|link| pinned.contains(&link.id()));
    Ok(of_agent.map(|link| link.program_id()).collect())
}

/// How each pod stands, and how much of them is in the kernel.
fn state(world: &World) -> anyhow::Result<Value> {
    let status = world.agent()?.status()?;
    let workloads = status["workloads"].as_array().context("no workloads")?;
    let workloads: Vec<Value> = workloads
        .iter()
        .map(|of| json!([of["workload"], of["state"]]))
        .collect();
    Ok(json!({
        "workloads": workloads,
        "unclaimed": status["unclaimed"],
        "kernel": world.in_kernel()?,
    }))
}
