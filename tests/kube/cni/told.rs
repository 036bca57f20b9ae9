//! What the cluster is told of its pods, and how these turn capture off and on.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use sidecar_agent::model::workload::STATUS_ANNOTATION;
use sidecar_tests::{kube::patiently, require_kube};

use super::world::{Pod, SECRET, World, address, wait_reaches};
use crate::pods::require_node;

#[test]
fn an_annotation_turns_capture_off_and_on_and_the_pod_tells_so() -> anyhow::Result<()> {
    require_kube!();
    require_node!();
    let world = World::telling()?;
    // Captured as it has a proxy, to which its calls go: nobody listens there.
    let pod = world.schedule_with("shop", &json!({}), &["app", "istio-proxy"])?;
    let args = pod.args(true);
    let result = world.chain(&json!({})).add(pod.sandbox(&args))?;
    let own = address(&result)?;
    let sleep = ["sleep", "infinity"];
    let _pause = world.node.run(&pod.uid, &pod.netns, "pause", &sleep)?;
    world.report(&pod, own)?;
    wait_reaches(&world, &pod, SECRET, false)?;
    wait_told(&world, &pod, "Captured", "captured")?;
    world.say("annotate", ["pod", &pod.name], "off")?;
    wait_reaches(&world, &pod, SECRET, true)?;
    wait_told(&world, &pod, "CaptureOff", "off")?;
    world.say("annotate", ["pod", &pod.name], "on")?;
    wait_reaches(&world, &pod, SECRET, false)
}

/// It was captured, as its annotation says; then nobody asks for it any more, first while an agent runs,
/// then while none does.
#[test]
fn a_pod_that_is_not_captured_any_more_does_not_go_on_telling_that_it_is() -> anyhow::Result<()> {
    require_kube!();
    require_node!();
    let mut world = World::telling()?;
    let pod = world.schedule("shop", false)?;
    let _pause = world.start_pod(&pod, &world.chain(&json!({})))?;
    for is_away in [false, true] {
        world.say("label", ["pod", &pod.name], "on")?;
        wait_annotated(&world, &pod, Some("captured"))?;
        if is_away {
            world.agent_mut()?.stop()?;
        }
        world.say("label", ["pod", &pod.name], "-")?;
        if is_away {
            world.agent_mut()?.start()?;
        }
        wait_annotated(&world, &pod, None)?;
        wait_reaches(&world, &pod, SECRET, true)?;
    }
    Ok(())
}

/// Waits until the annotation is this, or there is none.
fn wait_annotated(world: &World, pod: &Pod, expected: Option<&str>) -> anyhow::Result<()> {
    let get = [
        "get",
        "pod",
        &pod.name,
        "--namespace=prod-us1",
        "--output=json",
    ];
    patiently("the annotation", || {
        let object: Value = serde_json::from_str(&world.api.kubectl(&get)?)?;
        let found = object["metadata"]["annotations"][STATUS_ANNOTATION].as_str();
        ensure!(found == expected, "it is {found:?} instead of {expected:?}");
        Ok(())
    })
}

/// Waits until there is an event of this reason, and the annotation begins so.
fn wait_told(world: &World, pod: &Pod, reason: &str, status: &str) -> anyhow::Result<()> {
    let get = |args: &[&str]| -> anyhow::Result<Value> {
        let get = ["get", "--namespace=prod-us1", "--output=json"];
        Ok(serde_json::from_str(
            &world.api.kubectl(&[&get[..], args].concat())?,
        )?)
    };
    let selector = format!(
        "--field-selector=involvedObject.uid={},reason={reason}",
        pod.uid
    );
    patiently("the pod to be told", || {
        let events = get(&["events", &selector])?;
        events["items"].get(0).context("no such event")?;
        let object = get(&["pod", &pod.name])?;
        let found = object["metadata"]["annotations"][STATUS_ANNOTATION].as_str();
        ensure!(
            found.is_some_and(|found| found.starts_with(status)),
            "the annotation is {found:?}"
        );
        Ok(())
    })
}
