//! From the first connection on.

use std::{fs, os::unix::fs::MetadataExt as _, thread, time::Instant};

use anyhow::{Context as _, ensure};
use serde_json::json;
use sidecar_tests::{
    Cgroup, DEADLINE, Namespace,
    node::{Refused, Sandbox},
    poll::poll_result,
    require_kube,
};

use super::world::{DETAILS, PATIENCE, Pod, SECRET, World, address, wait_reaches};
use crate::pods::require_node;

#[test]
fn a_pods_first_connection_is_captured() -> anyhow::Result<()> {
    require_kube!();
    require_node!();
    let world = World::with_agent()?;
    let chain = world.chain(&json!({}));
    let mut took = Vec::new();
    let mut pods = Vec::new();
    for number in 0..8 {
        let pod = world.schedule(&format!("shop-{number}"), true)?;
        let args = pod.args(true);
        let (result, times) = chain.add_timed(pod.sandbox(&args))?;
        took.push(*times.last().context("no plugin")?);
        // What is not in force by now does not come to be: the agent may have answered too early.
        let paused = world.agent()?.pause()?;
        // What the plugin before has made is passed on, and works.
        let address = address(&result)?.to_owned();
        ensure!(
            pod.netns.ip("address show dev eth0")?.contains(&address),
            "{result}"
        );
        ensure!(
            !world.first_call(&pod, SECRET)?,
            "the first connection passed"
        );
        ensure!(
            world.first_call(&pod, DETAILS)?,
            "what is exposed is not reached"
        );
        drop(paused);
        // Kubelet reports: nothing changes by that.
        world.report(&pod, &address)?;
        pods.push((pod, result));
    }
    took.sort();
    eprintln!("ADD took {took:?}");
    ensure!(took.last() < Some(&PATIENCE), "{took:?}");
    let (pod, result) = &pods[0];
    let args = pod.args(true);
    chain.ask("CHECK", result, pod.sandbox(&args))?;
    chain.ask("DEL", result, pod.sandbox(&args))?;
    Ok(())
}

#[test]
fn who_is_not_to_be_captured_does_not_wait() -> anyhow::Result<()> {
    require_kube!();
    require_node!();
    let world = World::with_agent()?;
    let pod = world.schedule("plain", false)?;
    let before = Instant::now();
    let args = pod.args(true);
    world.chain(&json!({})).add(pod.sandbox(&args))?;
    ensure!(before.elapsed() < PATIENCE, "{:?}", before.elapsed());
    ensure!(world.first_call(&pod, SECRET)?, "it is captured");
    let told = world.told(&pod)?;
    ensure!(
        told["capture"] == "left" && told["reason"] == "not-asked",
        "{told}"
    );
    Ok(())
}

/// The watch lags behind kubelet's, and old runtimes tell no UID.
#[test]
fn a_pod_that_the_agent_has_not_heard_of_is_waited_for() -> anyhow::Result<()> {
    require_kube!();
    require_node!();
    let world = World::with_agent()?;
    let netns = Namespace::new("pod")?;
    let sandbox = Sandbox {
        netns: netns.path(),
        id: "late",
        args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=prod-us1;K8S_POD_NAME=late",
    };
    let impatient = world.chain(&json!({"timeoutSeconds": 1}));
    let refused = impatient.add(sandbox).err().context("it was let through")?;
    let refused = refused.downcast::<Refused>()?;
    ensure!(
        refused.code == 11 && refused.message.contains("knows no such pod"),
        "{refused}"
    );
    impatient.ask("DEL", &json!({}), sandbox)?;
    let chain = world.chain(&json!({}));
    let pod = thread::scope(|scope| {
        let adding = scope.spawn(|| chain.add(sandbox));
        let pod = world.schedule("late", true);
        let added = adding.join().map_err(|_| anyhow::anyhow!("ADD panicked"))?;
        added.and(pod)
    })?;
    let pod = Pod { netns, ..pod };
    ensure!(
        !world.first_call(&pod, SECRET)?,
        "the first connection passed"
    );
    Ok(())
}

#[test]
fn a_pod_that_started_without_the_agent_is_captured_by_the_next_one() -> anyhow::Result<()> {
    require_kube!();
    require_node!();
    let world = World::new()?;
    let pod = world.schedule("missed", true)?;
    let chain = world.chain(&json!({"agentAbsent": "allow"}));
    let args = pod.args(true);
    let result = chain.add(pod.sandbox(&args))?;
    let own = address(&result)?.to_owned();
    let _pause = world
        .node
        .run(&pod.uid, &pod.netns, "pause", &["sleep", "infinity"])?;
    world.report(&pod, &own)?;
    ensure!(world.first_call(&pod, SECRET)?, "captured by nobody?");
    let _agent = world.run_agent()?;
    wait_reaches(&world, &pod, SECRET, false)?;
    ensure!(
        world.first_call(&pod, DETAILS)?,
        "what is exposed is not reached"
    );
    Ok(())
}

#[test]
fn a_pod_waits_for_an_agent_that_comes() -> anyhow::Result<()> {
    require_kube!();
    require_node!();
    let world = World::new()?;
    let pod = world.schedule("early", true)?;
    let args = pod.args(true);
    let chain = world.chain(&json!({"timeoutSeconds": 60}));
    let _agent = thread::scope(|scope| {
        let adding = scope.spawn(|| chain.add(pod.sandbox(&args)));
        let agent = world.run_agent();
        let added = adding.join().map_err(|_| anyhow::anyhow!("ADD panicked"))?;
        added.and(agent)
    })?;
    ensure!(
        !world.first_call(&pod, SECRET)?,
        "the first connection passed"
    );
    Ok(())
}

/// Of its sandbox only the agent before was told, and nothing runs in it when the next one looks.
#[test]
fn a_pod_whose_first_container_comes_after_another_agent_is_captured() -> anyhow::Result<()> {
    require_kube!();
    require_node!();
    let mut world = World::with_agent()?;
    let pod = world.schedule("shop", true)?;
    let args = pod.args(true);
    world.chain(&json!({})).add(pod.sandbox(&args))?;
    world.agent_mut()?.stop()?;
    world.agent_mut()?.start()?;
    world
        .agent()?
        .wait_until("everything to be in force", |status| {
            status["generation"].as_u64() > Some(0)
        })?;
    let told = world.told(&pod)?;
    ensure!(!told["missing"].is_null(), "{told}");
    ensure!(
        !world.first_call(&pod, SECRET)?,
        "the first connection passed"
    );
    Ok(())
}

/// The proxy's cgroup within the pod's is told to the kernel; nothing is detached for it.
#[test]
fn containers_that_restart_leave_the_pod_attached() -> anyhow::Result<()> {
    require_kube!();
    require_node!();
    let world = World::with_agent()?;
    let pod = world.schedule_with("proxied", &json!({}), &["app", "istio-proxy"])?;
    let args = pod.args(true);
    let result = world.chain(&json!({})).add(pod.sandbox(&args))?;
    let own = address(&result)?;
    let dump = || -> anyhow::Result<String> {
        let output = world.agent()?.cli(&["dump", "-o", "json"])?;
        Ok(String::from_utf8(output.stdout)?.replace(' ', ""))
    };
    let sleep = ["sleep", "infinity"];
    let _pause = world.node.run(&pod.uid, &pod.netns, "pause", &sleep)?;
    for generation in ["1", "2"] {
        let run = |name: &str| {
            let id = format!("{name}{generation}");
            world.node.run(&pod.uid, &pod.netns, &id, &sleep)
        };
        let (app, proxy) = (run("app")?, run("proxy")?);
        let running = [("app", &*app.id), ("istio-proxy", &*proxy.id)];
        world.report_with(&pod, own, &running)?;
        let cgroup = Cgroup::root()?
            .join(world.node.pod_cgroup(&pod.uid))
            .join(&proxy.id);
        let told = format!("\"proxy_cgroup\":{}", fs::metadata(cgroup)?.ino());
        poll_result(DEADLINE, "the kernel to be told of the proxy", || {
            let dump = dump()?;
            ensure!(dump.contains(&told), "no {told} in {dump}");
            Ok(())
        })?;
    }
    let logs = world.agent()?.logs();
    let attached = logs
        .iter()
        .filter(|line| line.contains("attached") && line.contains("proxied"));
    ensure!(attached.count() == 1, "{}", logs.join("\n"));
    Ok(())
}
