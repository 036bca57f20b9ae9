//! `explain --kernel`: the plan, the maps and the attached programs say the same, or it is told.

mod inbound;
mod left;
mod outbound;
mod surroundings;

use std::{fs, path::Path};

use anyhow::{Context as _, ensure};
use aya::maps::{HashMap, Map, MapData};
use serde_json::Value;
use sidecar_common::{Path as Travels, Reason, keys::RuleKey, values::Rule};
use sidecar_tests::{
    DEADLINE,
    lab::{Lab, WORKLOAD},
    poll::poll_result,
    require_root,
};

use crate::fixture::registry_only;

const REFUSED: &str = "10.96.0.4:9080";
const EXPOSED: &str = "10.96.0.1:9080";

/// What it says, and whether its exit code is that of agreement.
fn ask(lab: &Lab, args: &[&str]) -> anyhow::Result<(Value, bool)> {
    let args = [&["explain", "--kernel", "-o", "json", WORKLOAD], args].concat();
    let output = lab.agent()?.cli(&args)?;
    let said = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    Ok((said, output.status.success()))
}

/// The programs decided so, and nothing differs. Nothing is left of the attempt.
fn agrees(lab: &Lab, args: &[&str], path: &str, reason: &str) -> anyhow::Result<Value> {
    poll_result(DEADLINE, "the agent to have looked", || {
        agrees_at_once(lab, args, path, reason)
    })
}

fn agrees_at_once(lab: &Lab, args: &[&str], path: &str, reason: &str) -> anyhow::Result<Value> {
    let (said, success) = ask(lab, args)?;
    let kernel = &said["kernel"];
    ensure!(success && kernel["agrees"] == true, "{said:#}");
    ensure!(
        kernel["decided"]["path"] == path && kernel["decided"]["reason"] == reason,
        "{said:#}"
    );
    let below = fs::read_dir(lab.cgroup().path())?.flatten();
    let left = below.filter(|entry| entry.path().is_dir()).count();
    ensure!(left == 0, "a cgroup is left");
    Ok(kernel.clone())
}

/// It differs, and says this of it.
fn differs(lab: &Lab, destination: &str, part: &str) -> anyhow::Result<()> {
    let (said, success) = ask(lab, &[destination])?;
    let differences = said["kernel"]["differences"].to_string();
    ensure!(!success && differences.contains(part), "{said:#}");
    Ok(())
}

fn outbound(pins: &Path) -> anyhow::Result<HashMap<MapData, RuleKey, Rule>> {
    let pin = pins.join("sidecar-agent/set-1/OUTBOUND");
    Ok(Map::HashMap(MapData::from_pin(pin)?).try_into()?)
}

#[test]
fn plan_maps_and_programs_agree_with_an_agent_and_without() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent()?;
    for _ in 0..2 {
        let direct = agrees(&lab, &[EXPOSED], "direct", "egress-service")?;
        ensure!(direct["target"] == EXPOSED, "{direct}");
        let refused = agrees(&lab, &[REFUSED], "deny", "registry-only")?;
        ensure!(refused["target"].is_null(), "{refused}");
        let own = format!("{}:7", lab.workload().v4);
        let passed = agrees(&lab, &[&own], "pass", "self-call")?;
        ensure!(passed["target"] == own, "{passed}");
        let v6 = agrees(&lab, &["[2001:db8::1]:80"], "deny", "registry-only")?;
        ensure!(v6["error"].is_string(), "{v6}");
        if lab.agent()?.pid().is_none() {
            return Ok(());
        }
        lab.agent_mut()?.stop()?;
    }
    Ok(())
}

#[test]
fn what_the_proxy_gets_agrees() -> anyhow::Result<()> {
    require_root!();
    let mut lab = Lab::new()?;
    lab.write_mesh("{}\n")?;
    lab.write_workload(&["capture.sidecar-agent.io/proxy: external"])?;
    lab.start_agent()?;
    let proxied = agrees(&lab, &[EXPOSED], "proxy", "capture-all")?;
    let target = proxied["target"].as_str().unwrap_or_default();
    ensure!(
        target.starts_with("127.") && target.ends_with(":15001"),
        "{proxied}"
    );
    // Not by the proxy's user, whose decision is another.
    agrees(&lab, &["--uid", "1337", EXPOSED], "pass", "proxy-own")?;
    let dump = lab.agent()?.cli(&["dump", "original-dst", "-o", "json"])?;
    let dump: Value = serde_json::from_slice(&dump.stdout)?;
    ensure!(
        dump["original_dst"].as_array().is_some_and(Vec::is_empty),
        "an original destination is left: {dump}"
    );
    Ok(())
}

#[test]
fn a_changed_entry_is_found_in_map_and_decision() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent()?;
    let mut map = outbound(&lab.agent()?.bpffs())?;
    let (key, rule) = map.iter().flatten().next().context("no rule")?;
    let deny = Rule {
        path: Travels::Deny as u8,
        reason: Reason::RegistryOnly as u8,
        ..rule
    };
    map.insert(key, deny, 0)?;
    differs(&lab, EXPOSED, "OUTBOUND 10.96.0.1:9080: deny registry-only")?;
    differs(&lab, EXPOSED, "the programs decided deny, registry-only")?;
    map.remove(&key)?;
    differs(&lab, EXPOSED, "OUTBOUND 10.96.0.1:9080: missing")?;
    map.insert(key, rule, 0)?;
    agrees(&lab, &[EXPOSED], "direct", "egress-service")?;

    // It leads elsewhere, which neither path nor reason tells.
    let mut elsewhere = rule;
    elsewhere.backends = 1;
    elsewhere.target = sidecar_common::Endpoint::new(key.dst.addr, 9);
    map.insert(key, elsewhere, 0)?;
    differs(&lab, EXPOSED, "it leads to 10.96.0.1:9 by direct")
}

#[test]
fn capture_that_is_off_is_told() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent()?;
    let off = lab.agent()?.cli(&["capture", "off", WORKLOAD])?;
    ensure!(off.status.success());
    differs(&lab, REFUSED, "capture is off")?;
    differs(&lab, REFUSED, "the programs decided nothing")?;

    // And so is a plan that is not the one of the files.
    let on = lab.agent()?.cli(&["capture", "on", WORKLOAD])?;
    ensure!(on.status.success());
    agrees(&lab, &[REFUSED], "deny", "registry-only")?;
    lab.agent_mut()?.stop()?;
    lab.write_only("services.yaml", "")?;
    differs(&lab, EXPOSED, "is in force")
}
