//! `dump`: what is in the maps, by name, with an agent and without.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use sidecar_tests::{
    Client,
    lab::{Lab, WORKLOAD},
    require_root,
};

use crate::fixture::registry_only;

fn json(lab: &Lab, args: &[&str]) -> anyhow::Result<Value> {
    let output = lab.agent()?.cli(&[args, &["-o", "json"]].concat())?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn rows(of: &Value) -> anyhow::Result<&Vec<Value>> {
    of.as_array().with_context(|| format!("no rows: {of}"))
}

/// What the maps say is what the plan says.
fn says_what_the_plan_says(lab: &Lab) -> anyhow::Result<()> {
    let dump = json(lab, &["dump"])?;
    let plan = json(lab, &["plan", WORKLOAD])?;
    ensure!(dump["sets"][0]["complete"] == true, "{dump}");
    ensure!(dump["sets"][0]["problem"].is_null(), "{dump}");
    let word = &rows(&dump["workloads"])?[0];
    ensure!(
        word["cgroups"] == serde_json::json!([lab.cgroup().id()?]),
        "{word}"
    );
    ensure!(
        word["suspended"] == false && word["open"] == false,
        "{word}"
    );

    let header = rows(&dump["plans"])?
        .iter()
        .find(|of| of["plan"] == word["plan"])
        .context("the plan that is followed has no header")?;
    ensure!(header["digest"] == plan[0]["digest"], "{header} {plan}");
    ensure!(
        header["outbound_default"] == "deny registry-only exempt-self",
        "{header}"
    );

    let mut wanted: Vec<[Value; 3]> = Vec::new();
    for rule in rows(&plan[0]["rules"])? {
        let destination = rule["destination"].as_str().unwrap_or_default();
        if rule["direction"] == "outbound" && destination.parse::<SocketAddr>().is_ok() {
            wanted.push(["destination", "path", "reason"].map(|key| rule[key].clone()));
        }
    }
    let found: Vec<[Value; 3]> = rows(&dump["outbound"])?
        .iter()
        .filter(|of| of["plan"] == word["plan"])
        .map(|of| ["destination", "path", "reason"].map(|key| of[key].clone()))
        .collect();
    let sorted = |mut list: Vec<[Value; 3]>| {
        list.sort_by_key(|row| format!("{row:?}"));
        list
    };
    ensure!(!wanted.is_empty(), "the plan has no rules: {plan}");
    assert_eq!(sorted(found), sorted(wanted));

    let identity = &rows(&dump["identities"])?[0];
    ensure!(identity["workload"] == word["slot"], "{identity}");
    ensure!(
        identity["source_v4"] == lab.workload().v4.to_string(),
        "{identity}"
    );
    let addresses = rows(&dump["local_addrs"])?;
    let own = lab.workload().v6.to_string();
    ensure!(addresses.iter().any(|of| of["address"] == own), "{dump}");
    ensure!(rows(&dump["links"])?.len() >= 11, "{dump}");
    Ok(())
}

#[test]
fn the_maps_say_what_the_plan_says_with_an_agent_and_without() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent()?;
    says_what_the_plan_says(&lab)?;
    let refused = Client::tcp("10.96.0.4:9080".parse::<SocketAddr>()?).place(lab.inside());
    ensure!(!refused.connect()?.connected, "not captured");
    lab.agent_mut()?.stop()?;
    says_what_the_plan_says(&lab)?;

    let dump = json(&lab, &["dump", "counters", "workloads"])?;
    let slot = &dump["workloads"][0]["slot"];
    let counted = rows(&dump["counters"])?.iter().any(|of| {
        of["workload"] == *slot
            && of["path"] == "deny"
            && of["reason"] == "registry-only"
            && of["count"] == 1
    });
    ensure!(counted, "{dump}");
    ensure!(dump["plans"].is_null(), "not asked for: {dump}");

    let text = lab.agent()?.cli(&["dump", "plans", "owners"])?;
    let text = String::from_utf8(text.stdout)?;
    ensure!(
        text.contains("OUTBOUND_DEFAULT") && text.contains("deny registry-only"),
        "{text}"
    );
    ensure!(text.contains("OWNERS: empty"), "{text}");
    Ok(())
}

#[test]
fn where_no_agent_ever_ran_it_says_so() -> anyhow::Result<()> {
    require_root!();
    let dir = tempfile::tempdir()?;
    let output = std::process::Command::new(sidecar_tests::programs::agent()?)
        .args(["dump", "--bpffs"])
        .arg(dir.path())
        .output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(1) && error.contains("has an agent run with this --bpffs?"),
        "{error}"
    );
    Ok(())
}
