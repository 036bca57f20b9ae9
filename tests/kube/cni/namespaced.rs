//! An agent in a cgroup namespace of its own, as containers are on hosts with control groups of version 2
//! alone: the kernel tells it paths of cgroups as seen from its own.

use anyhow::ensure;
use serde_json::json;
use sidecar_tests::{Agent, Cgroup, DEADLINE, poll::poll_result, require_kube, tempdir::TempDir};

use super::world::{DETAILS, SECRET, World, wait_reaches};
use crate::pods::require_node;

/// Goes to a cgroup, and takes its own namespace of cgroups and mounts. There the runtime mounts what is
/// in the container (or nothing, if it is told so), and the host's cgroups where they are wanted.
const CONTAINER: &str = r#"
set -e
home=$1 host=$2 at=$3 own=$4
shift 4
echo $$ >"$home/cgroup.procs"
exec unshare --cgroup --mount --propagation private sh -c '
    set -e
    host=$1 at=$2 own=$3 kept=$4
    shift 4
    mount --bind "$host" "$kept"
    umount --recursive --lazy /sys/fs/cgroup
    test -z "$own" || mount -t cgroup2 cgroup2 /sys/fs/cgroup
    test -z "$at" || mount --bind "$kept" "$at"
    umount "$kept"
    exec "$@"
' sh "$host" "$at" "$own" "$KEPT" "$@"
"#;

/// The agent's container: where the host's cgroups are mounted, if anywhere, and whether its own are.
struct Layout {
    host: Option<String>,
    own: bool,
}

struct Contained {
    world: World,
    home: Cgroup,
    // Dropped in this order: the agent is in them.
    _top: Cgroup,
    _kept: TempDir,
}

fn contained(layout: &Layout, kept: TempDir) -> anyhow::Result<Contained> {
    let top = Cgroup::new("agent")?;
    let home = top.child("container")?;
    let root = Cgroup::root()?;
    let at = layout.host.clone().unwrap_or_default();
    let own = if layout.own { "own" } else { "" };
    let words: [&str; 8] = [
        "sh",
        "-c",
        CONTAINER,
        "sh",
        &home.path().display().to_string(),
        &root.display().to_string(),
        &at,
        own,
    ];
    let world = World::with(|world| {
        let agent = Agent::with_kubeconfig(&world.api.kubeconfig());
        Ok(agent.under(words).env("KEPT", kept.path()))
    })?;
    Ok(Contained {
        world,
        home,
        _top: top,
        _kept: kept,
    })
}

#[test]
fn an_agent_in_a_container_finds_pods_by_the_hosts_cgroups() -> anyhow::Result<()> {
    require_kube!();
    require_node!();
    let elsewhere = TempDir::new("sidecar-host-")?;
    for layout in [
        // As the chart has it, in place of the container's own, or on top of them.
        Layout {
            host: Some("/sys/fs/cgroup".into()),
            own: false,
        },
        Layout {
            host: Some("/sys/fs/cgroup".into()),
            own: true,
        },
        // The container's own come first.
        Layout {
            host: Some(elsewhere.path().display().to_string()),
            own: true,
        },
    ] {
        let contained = contained(&layout, TempDir::new("sidecar-kept-")?)?;
        let world = &contained.world;
        let pod = world.schedule("shop", true)?;
        let chain = world.chain(&json!({}));
        let _pause = world.start_pod(&pod, &chain)?;
        ensure!(
            !world.first_call(&pod, SECRET)?,
            "the first connection passed"
        );
        ensure!(world.first_call(&pod, DETAILS)?, "it is cut off");
        // One that no plugin was asked about: found by its processes.
        let missed = world.schedule("missed", true)?;
        let excluded = world.chain(&json!({"excludeNamespaces": ["prod-us1"]}));
        let _missed = world.start_pod(&missed, &excluded)?;
        wait_reaches(world, &missed, SECRET, false)?;
        // Wherever it believes to be, it is not captured itself.
        refuses_itself(&contained)?;
    }
    Ok(())
}

/// A workload in whose cgroup the agent is.
fn refuses_itself(contained: &Contained) -> anyhow::Result<()> {
    let Contained { world, home, .. } = contained;
    let top = home.path().parent().unwrap_or(home.path());
    let top = top.strip_prefix(Cgroup::root()?)?.display().to_string();
    let entry = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry",
        "metadata": {
            "name": "agent", "namespace": "prod-us1",
            "annotations": {"capture.sidecar-agent.io/cgroup": top},
        },
        "spec": {"address": "10.1.1.1"},
    });
    world.api.apply(&entry.to_string())?;
    world
        .agent()?
        .wait_until("the agent to refuse itself", |status| {
            let mut workloads = status["workloads"].as_array().into_iter().flatten();
            workloads.any(|of| {
                let problem = of["problem"].as_str().unwrap_or_default();
                of["workload"] == "prod-us1/agent" && problem.contains("contains the agent itself")
            })
        })?;
    Ok(())
}

/// No pod can be found, and the log says why.
#[test]
fn an_agent_that_sees_only_its_own_cgroups_says_what_is_missing() -> anyhow::Result<()> {
    require_kube!();
    require_node!();
    let layout = Layout {
        host: None,
        own: true,
    };
    let contained = contained(&layout, TempDir::new("sidecar-kept-")?)?;
    let world = &contained.world;
    let agent = world.agent()?;
    agent.wait_log("mount the host's /sys/fs/cgroup into it")?;
    let pod = world.schedule("shop", true)?;
    let allow = world.chain(&json!({"agentAbsent": "allow", "timeoutSeconds": 1}));
    let _pause = world.start_pod(&pod, &allow)?;
    poll_result(DEADLINE, "what is missing to be told", || {
        let told = world.told(&pod)?;
        ensure!(told["missing"] == "cgroup", "{told}");
        Ok(())
    })
}
