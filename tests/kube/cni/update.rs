//! A `DaemonSet`'s update of the node: the next pod starts beside the agent, takes over, and the agent is
//! stopped after that. As another version does, the next one has other maps.

use std::{
    fs, panic,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::Instant,
};

use anyhow::{Context as _, ensure};
use serde_json::json;
use sidecar_tests::{
    Agent, Client, DEADLINE, Mode, Namespace, kube::AT_ONCE, lab::service, node::Sandbox,
    poll::poll_result, require_kube, scrape::get,
};

use super::world::{DETAILS, Inside, Pod, SECRET, World};
use crate::{pods::require_node, world::sidecar};

/// Echoes for as long as it is wanted.
const HELD: &str = "10.96.1.7:9080";
/// Exposed by the Sidecar that is edited.
const EDITED: &str = "10.96.1.5:9080";

/// How the chart has an agent started, as far as it is about updates.
fn args(instance: &str) -> [String; 3] {
    let instance = format!("--instance={instance}");
    ["--cni".into(), "--await-stop".into(), instance]
}

#[test]
fn an_update_passes_unnoticed_by_pods_that_run_and_pods_that_start() -> anyhow::Result<()> {
    require_kube!();
    require_node!();
    let mut world = World::with(|world| {
        let agent = Agent::with_kubeconfig(&world.api.kubeconfig());
        Ok(agent.args(&args("0")[1..]))
    })?;
    world.serve(HELD, Mode::Echo)?;
    world.serve(EDITED, Mode::Banner)?;
    world.api.kubectl(&["create", "namespace", "prod-us2"])?;
    for (namespace, name, address) in [("prod-us1", "held", HELD), ("prod-us2", "edited", EDITED)] {
        let address: std::net::SocketAddr = address.parse()?;
        let service = service(namespace, name, address.ip(), address.port());
        world.api.apply(&service)?;
    }
    world.api.apply(&sidecar(&["prod-us1"]))?;
    let pod = world.schedule("shop", true)?;
    let _pause = world.start_pod(&pod, &world.chain(&json!({})))?;
    let inside = world.inside(&pod)?;
    let mut held = poll_result(DEADLINE, "a connection to hold", || {
        let client = Client::tcp(HELD.parse()?).place(inside.place(&pod));
        let held = client.hold()?;
        ensure!(held.outcome().connected, "{:?}", held.outcome());
        Ok(held)
    })?;
    for (number, rules) in [(1, "100000"), (2, "200000")] {
        let made = under_visits(world.inside(&pod)?, || {
            update(&mut world, &inside, number, rules)
        })?;
        println!("update {number}: {made} visits");
        ensure!(made > 20, "only {made} visits");
        ensure!(
            held.exchange("there?")? == "there?",
            "the held connection is gone"
        );
    }
    let pins = world.agent()?.bpffs().join("sidecar-agent");
    ensure!(pins.join("set-3").exists(), "the maps have not changed");
    Ok(())
}

fn update(world: &mut World, inside: &Inside, number: u8, rules: &str) -> anyhow::Result<()> {
    let names: Vec<String> = (0..6).map(|of| format!("during-{number}-{of}")).collect();
    let pods = world.schedule_many(&names)?;
    let late = Late::new(number)?;
    let mut agent = world.agent.take().context("no agent")?;
    // The late pod waits for all that is done before it is scheduled.
    let strict = &json!({"agentAbsent": "fail", "timeoutSeconds": 120});
    let (shared, name) = (&*world, late.name.clone());
    let agent = thread::scope(|scope| -> anyhow::Result<Agent> {
        // Asked of the agent, which does not know the pod yet: answered by the next.
        let waiting = scope.spawn(move || {
            let added = shared.chain(strict).add(late.sandbox());
            added.map(|_| late.netns)
        });
        poll_result(DEADLINE, "the agent to be asked", || {
            is_asked(shared.node.netns(), &agent.run_dir())
        })?;
        // One after the other while agents change.
        let starting = scope.spawn(|| -> anyhow::Result<()> {
            for pod in &pods {
                let args = pod.args(true);
                shared.chain(strict).add(pod.sandbox(&args))?;
                ensure!(!shared.first_call(pod, SECRET)?, "{} passed", pod.name);
            }
            Ok(())
        });
        agent.set_args(args(&number.to_string()));
        let before = agent.succeed(&["--max-rules", rules])?;
        let path = |number| format!("/readyz?instance={number}");
        poll_result(DEADLINE, "the next agent to be ready", || {
            let ready = get(&agent, &path(number))?;
            ensure!(ready.code == 200, "{}", ready.body);
            Ok(())
        })?;
        let old = get(&agent, &path(number - 1))?;
        ensure!(old.code != 200, "it answers for the one before");
        ensure!(
            before.has_ended()?.is_none(),
            "the one before was not waited for"
        );

        is_edited(shared, inside)?;
        let pod = shared.schedule(&name, true)?;
        let netns = waiting
            .join()
            .unwrap_or_else(|panic| panic::resume_unwind(panic))?;
        let pod = Pod { netns, ..pod };
        ensure!(!shared.first_call(&pod, SECRET)?, "the late pod passed");
        starting
            .join()
            .unwrap_or_else(|panic| panic::resume_unwind(panic))?;

        ensure!(before.has_ended()?.is_none(), "it did not await its end");
        before.terminate()?;
        ensure!(before.wait()?.success(), "it did not end well");
        Ok(agent)
    });
    world.agent = Some(agent?);
    Ok(())
}

/// The Sidecar is edited while there are two agents: the next connection follows.
fn is_edited(world: &World, inside: &Inside) -> anyhow::Result<()> {
    for exposed in [true, false] {
        let exposed_services: &[&str] = if exposed {
            &["prod-us1", "prod-us2"]
        } else {
            &["prod-us1"]
        };
        world.api.apply(&sidecar(exposed_services))?;
        let accepted = Instant::now();
        poll_result(DEADLINE, "the edit to be followed", || {
            ensure!(inside.reaches(EDITED)? == exposed, "not yet");
            Ok(())
        })?;
        let took = accepted.elapsed();
        println!("an edit beside the agent before was followed after {took:?}");
        ensure!(took < AT_ONCE, "the edit took {took:?}");
    }
    Ok(())
}

/// A pod whose sandbox is made before the API server is heard of it.
struct Late {
    name: String,
    args: String,
    netns: Namespace,
}

impl Late {
    fn new(number: u8) -> anyhow::Result<Self> {
        let name = format!("late-{number}");
        let pod = "IgnoreUnknown=1;K8S_POD_NAMESPACE=prod-us1;K8S_POD_NAME=";
        Ok(Self {
            args: format!("{pod}{name}"),
            name,
            netns: Namespace::new("pod")?,
        })
    }

    fn sandbox(&self) -> Sandbox<'_> {
        Sandbox {
            netns: self.netns.path(),
            id: &self.name,
            args: &self.args,
        }
    }
}

/// Whether a plugin is connected to the agent's socket: of the plugin's network namespace is also the
/// agent's end of the connection.
fn is_asked(node: &Namespace, run_dir: &Path) -> anyhow::Result<()> {
    let sockets = node.run(|| fs::read_to_string("/proc/thread-self/net/unix"))?;
    let sockets = sockets.context("cannot read which unix sockets there are")?;
    // By the name that it was made with.
    let socket = run_dir.join("cni.new").display().to_string();
    ensure!(sockets.contains(&socket), "nobody asks");
    Ok(())
}

/// While `change` runs, a pod's connections are made: what is exposed is reached each time, and what is
/// not never.
fn under_visits(
    inside: Inside,
    change: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<u32> {
    let (done, made) = (AtomicBool::new(false), AtomicU32::new(0));
    let (is_done, counted) = (&done, &made);
    thread::scope(|scope| {
        let visits = scope.spawn(move || -> anyhow::Result<()> {
            while !is_done.load(Ordering::Relaxed) {
                let number = counted.fetch_add(1, Ordering::Relaxed);
                ensure!(inside.reaches(DETAILS)?, "visit {number} was refused");
                ensure!(!inside.reaches(SECRET)?, "visit {number} was not captured");
            }
            Ok(())
        });
        // The visits have to end also when it panics.
        let changed = panic::catch_unwind(panic::AssertUnwindSafe(change));
        done.store(true, Ordering::Relaxed);
        let changed = changed.unwrap_or_else(|panic| panic::resume_unwind(panic));
        let visited = visits.join();
        // Without an agent, which goes with the change that failed, nothing is captured.
        changed?;
        visited.unwrap_or_else(|panic| panic::resume_unwind(panic))
    })?;
    Ok(made.into_inner())
}
