//! Labels of namespaces and pods turn capture on and off while pods run, and who speaks later counts for
//! more.

use std::time::Instant;

use anyhow::ensure;
use serde_json::json;
use sidecar_tests::{
    DEADLINE,
    kube::{AT_ONCE, patiently},
    poll::poll_result,
    require_kube,
};

use super::world::{DETAILS, SECRET, World};
use crate::pods::require_node;

/// What is said by whom (`-`: nothing any more), whether the pod is captured then, and who has decided.
const STEPS: [(&str, &str, bool, &str); 9] = [
    ("namespace", "on", true, "namespace-label"),
    ("label", "off", false, "pod-label"),
    ("annotation", "on", true, "annotation"),
    ("annotation", "-", false, "pod-label"),
    // By what the pod says before it is known what the namespace says, and then.
    ("namespace", "off", false, "pod-label"),
    ("label", "on", true, "pod-label"),
    ("label", "-", false, "namespace-label"),
    ("namespace", "on", true, "namespace-label"),
    ("namespace", "-", false, "not-asked"),
];

#[test]
fn labels_turn_capture_on_and_off_for_the_next_connection() -> anyhow::Result<()> {
    require_kube!();
    require_node!();
    let world = World::with_agent()?;
    // One that nobody asks for, and that has no proxy.
    let pod = world.schedule("shop", false)?;
    let _pause = world.start_pod(&pod, &world.chain(&json!({})))?;
    let inside = world.inside(&pod)?;
    ensure!(inside.reaches(SECRET)?, "it is captured");
    let mut slowest = std::time::Duration::ZERO;
    for (by, value, captured, reason) in STEPS {
        let (how, of) = match by {
            "namespace" => ("label", ["namespace", "prod-us1"]),
            "label" => ("label", ["pod", "shop"]),
            _ => ("annotate", ["pod", "shop"]),
        };
        world.say(how, of, value)?;
        let said = Instant::now();
        let step = format!("{by} {value}: captured {captured}");
        poll_result(DEADLINE, &step, || {
            ensure!(inside.reaches(SECRET)? != captured, "not yet");
            Ok(())
        })?;
        slowest = slowest.max(said.elapsed());
        patiently(&step, || {
            let told = world.told(&pod)?;
            ensure!(told["reason"] == reason, "{told}");
            Ok(())
        })?;
        ensure!(inside.reaches(SECRET)? != captured, "{step}: not for long");
        ensure!(inside.reaches(DETAILS)?, "{step}: it is cut off");
    }
    println!("the slowest label was followed after {slowest:?} from kubectl's end");
    ensure!(slowest < AT_ONCE, "{slowest:?}");
    Ok(())
}
