//! Programs of others at our hooks, as `run` and `doctor` see them.

use std::{fs, net::SocketAddr, path::Path};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use sidecar_tests::{
    Cgroup, Client, DEADLINE, Place,
    foreign::{Flags, Foreign, Hook},
    lab::Lab,
    poll::poll_result,
    require_root,
};

use crate::fixture::{registry_only, workload_entry};

fn connected(place: Place<'_>, address: &str) -> anyhow::Result<bool> {
    Ok(Client::tcp(address.parse::<SocketAddr>()?)
        .place(place)
        .connect()?
        .connected)
}

/// Whether connections from a place are decided by the lab's plan.
fn is_captured(place: Place<'_>) -> anyhow::Result<bool> {
    ensure!(
        connected(place, "10.96.0.1:9080")?,
        "the exposed service is not reached"
    );
    Ok(!connected(place, "10.96.0.4:9080")?)
}

fn workload<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    let mut workloads = status["workloads"].as_array().into_iter().flatten();
    workloads.find(|of| of["workload"] == name)
}

#[test]
fn one_that_keeps_us_out_is_named_and_its_end_is_noticed() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent()?;
    let parent = Cgroup::new("legacy")?;
    let cgroup = parent.child("workload")?;
    let place = Place::here().netns(&lab.workload().netns).cgroup(&cgroup);
    let netns = lab.workload().netns.path().display().to_string();
    let entry = workload_entry("other", &cgroup.below_root()?, &netns);
    let links = lab.agent()?.bpffs().join("sidecar-agent/set-1/workload-2");
    for (at, hook, flags) in [
        (&parent, Hook::Connect4, Flags::Exclusive),
        (&cgroup, Hook::Connect4, Flags::Exclusive),
        (&cgroup, Hook::Connect4, Flags::Override),
        // What is attached before it is met does not stay so.
        (&cgroup, Hook::Recvmsg6, Flags::Exclusive),
    ] {
        let foreign = poll_result(DEADLINE, "the hook to be free", || {
            Foreign::on_cgroup(at.path(), hook, flags)
        })?;
        lab.write("other.yaml", &entry)?;
        let status = lab.agent()?.wait_until("the problem", |status| {
            workload(status, "prod-us1/other").is_some_and(|of| of["problem"].is_string())
        })?;
        let of = workload(&status, "prod-us1/other").context("no workload")?;
        let problem = of["problem"].as_str().unwrap_or_default();
        let name = match hook {
            Hook::Recvmsg6 => "recvmsg6",
            _ => "connect4",
        };
        for words in [
            &*format!("{name}: program "),
            "(foreign)",
            &format!("at cgroup {}", at.path().display()),
            "BPF_F_ALLOW_MULTI",
            "bpftool cgroup detach",
        ] {
            ensure!(problem.contains(words), "no {words:?} in {problem}");
        }
        ensure!(of["state"] == "pending", "{of}");
        poll_result(DEADLINE, "its links to go", || {
            ensure!(!links.exists(), "they are pinned");
            Ok(())
        })?;
        ensure!(is_captured(lab.inside())?, "the other one was disturbed");
        drop(foreign);
        poll_result(DEADLINE, "it to be captured", || {
            ensure!(is_captured(place)?, "it is not");
            Ok(())
        })?;
        fs::remove_file(lab.config_dir().join("other.yaml"))?;
        poll_result(DEADLINE, "it to be let go", || {
            ensure!(!is_captured(place)?, "it is not");
            Ok(())
        })?;
    }
    // One above that lets others take its place.
    let _foreign = Foreign::on_cgroup(parent.path(), Hook::Connect4, Flags::Override)?;
    lab.write("other.yaml", &entry)?;
    poll_result(DEADLINE, "it to be captured", || {
        ensure!(is_captured(place)?, "it is not");
        Ok(())
    })
}

/// What `doctor` has found about a foreign program of a cgroup.
fn found(lab: &Lab, cgroup: &Path) -> anyhow::Result<String> {
    let output = lab.agent()?.cli(&["doctor", "-o", "json"])?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let mut checks = report["checks"].as_array().into_iter().flatten();
    let name = format!("hooks of cgroup {}", cgroup.display());
    let check = checks.find(|of| of["code"] == "SCD0603" && of["check"] == name);
    let check = check.with_context(|| format!("nothing about {name}: {report:#}"))?;
    Ok(check["found"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn doctor_tells_who_runs_before_ours_and_who_after() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    let parent = Cgroup::new("parent")?;
    let cgroup = parent.child("workload")?;
    let container = cgroup.child("container")?;
    let at = |cgroup: &Cgroup, flags| Foreign::on_cgroup(cgroup.path(), Hook::Connect4, flags);
    let netns = lab.workload().netns.path().display().to_string();
    let entry = workload_entry("other", &cgroup.below_root()?, &netns);
    lab.write("other.yaml", &entry)?;
    // Before the agent comes, of one cgroup, and after.
    let _earlier = at(&cgroup, Flags::Multi)?;
    lab.start_agent()?;
    lab.agent()?.wait_until("the other one", |status| {
        workload(status, "prod-us1/other").is_some_and(|of| of["state"] == "captured")
    })?;
    let _programs = [
        at(&cgroup, Flags::Multi)?,
        at(&container, Flags::Multi)?,
        at(&parent, Flags::Multi)?,
        at(lab.cgroup(), Flags::Multi)?,
    ];
    for (cgroup, when) in [
        (&container, &["before"][..]),
        (&cgroup, &["before", "after"]),
        (&parent, &["after"]),
        (lab.cgroup(), &["after"]),
    ] {
        let found = found(&lab, cgroup.path())?;
        let told: Vec<&str> = found
            .split("connect4: program ")
            .skip(1)
            .filter_map(|of| of.trim_end_matches(", ").rsplit_once("(foreign), "))
            .map(|(_, when)| when)
            .collect();
        let wanted: Vec<String> = when.iter().map(|when| format!("{when} ours")).collect();
        ensure!(told == wanted, "{}: {found}", cgroup.path().display());
    }
    if let Ok(_first) = at(&parent, Flags::Preorder) {
        let found = found(&lab, parent.path())?;
        ensure!(
            found.contains("(foreign), before ours") && found.contains("(foreign), after ours"),
            "{found}"
        );
    }
    Ok(())
}
