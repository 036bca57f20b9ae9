//! What comes and goes while the agent runs.

use std::net::SocketAddr;

use crate::fixture::{registry_only, workload_entry};
use anyhow::ensure;
use sidecar_tests::{
    Cgroup, Client, DEADLINE, Namespace, Place, Server,
    lab::{Lab, service},
    poll::poll_result,
    require_root,
};

fn connected(place: Place<'_>, address: &str) -> anyhow::Result<bool> {
    Ok(Client::tcp(address.parse::<SocketAddr>()?)
        .place(place)
        .connect()?
        .connected)
}

#[test]
fn only_the_workload_is_touched() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent()?;
    ensure!(
        !connected(lab.inside(), "10.96.0.4:9080")?,
        "the workload reaches what it must not"
    );
    let same_netns = Place::here().netns(&lab.workload().netns);
    ensure!(
        connected(same_netns, "10.96.0.4:9080")?,
        "a process outside the cgroup is captured"
    );
    ensure!(
        connected(lab.outside(), "10.96.0.4:9080")?,
        "another host is captured"
    );
    Ok(())
}

#[test]
fn a_workload_that_comes_later_is_captured_and_one_that_goes_is_not() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    let other = Cgroup::new("other")?;
    let path = other.below_root()?;
    lab.start_agent()?;
    let place = Place::here().netns(&lab.workload().netns).cgroup(&other);
    ensure!(
        connected(place, "10.96.0.4:9080")?,
        "captured before it was declared"
    );
    let netns = lab.workload().netns.path().display().to_string();
    let entry = workload_entry("other", &path, &netns);
    lab.write("other.yaml", &entry)?;
    ensure!(
        !connected(place, "10.96.0.4:9080")?,
        "not captured after it was declared"
    );
    ensure!(
        connected(place, "10.96.0.1:9080")?,
        "what the Sidecar exposes is not reached"
    );
    std::fs::remove_file(lab.config_dir().join("other.yaml"))?;
    poll_result(DEADLINE, "the workload to be let go", || {
        ensure!(connected(place, "10.96.0.4:9080")?, "it is still captured");
        Ok(())
    })?;
    ensure!(
        !connected(lab.inside(), "10.96.0.4:9080")?,
        "the other workload was let go too"
    );
    Ok(())
}

/// Its container is gone, and the file that declares it is still there.
#[test]
fn a_workload_whose_cgroup_and_namespace_are_removed_leaves_nothing() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent()?;
    let pins = lab.agent()?.bpffs().join("sidecar-agent/set-1");
    let (first, second) = (pins.join("workload-1"), pins.join("workload-2"));
    let entries = |lab: &Lab| -> anyhow::Result<Vec<(String, u64)>> {
        let status = lab.agent()?.status()?;
        let maps = status["maps"].as_array().into_iter().flatten();
        let entries = maps.filter_map(|map| {
            let name = map["map"].as_str()?.to_owned();
            Some((name, map["entries"].as_u64()?))
        });
        let entries: Vec<_> = entries.collect();
        ensure!(!entries.is_empty(), "{status}");
        Ok(entries)
    };
    let before = entries(&lab)?;

    let (cgroup, netns) = (Cgroup::new("other")?, Namespace::new("other")?);
    let path = netns.path().display().to_string();
    let entry = workload_entry("other", &cgroup.below_root()?, &path);
    lab.write("other.yaml", &entry)?;
    lab.wait_captured()?;
    ensure!(second.join("sk_lookup").exists(), "not attached");
    ensure!(entries(&lab)? != before, "it has no entry");

    drop((cgroup, netns));
    poll_result(DEADLINE, "it to leave nothing", || {
        ensure!(!second.exists(), "its links are pinned");
        let now = entries(&lab)?;
        ensure!(now == before, "{now:?}, before {before:?}");
        Ok(())
    })?;
    let status = lab.agent()?.wait_until("it to be told", |status| {
        let mut workloads = status["workloads"].as_array().into_iter().flatten();
        workloads.any(|of| of["workload"] == "prod-us1/other" && of["state"] == "pending")
    })?;
    ensure!(first.join("sk_lookup").exists(), "{status}");
    ensure!(
        !connected(lab.inside(), "10.96.0.4:9080")?,
        "the other workload was let go too"
    );
    Ok(())
}

#[test]
fn cgroups_that_change_hands_stay_captured() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    let other = Cgroup::new("other")?;
    let (own_path, other_path) = (lab.cgroup().below_root()?, other.below_root()?);
    let first = std::fs::read_to_string(lab.config_dir().join("workload.yaml"))?;
    let second = first
        .replace("name: productpage", "name: another")
        .replace(&own_path, &other_path)
        .replace("10.77.0.2", "10.77.0.99");
    let both = format!("{first}---\n{second}");
    lab.write("workload.yaml", &both)?;
    lab.start_agent()?;
    lab.agent()?.wait_until("both to be captured", |status| {
        let workloads = status["workloads"].as_array().into_iter().flatten();
        let captured = workloads.filter(|of| of["state"] == "captured");
        captured.count() == 2
    })?;
    let captured = |lab: &Lab| -> anyhow::Result<()> {
        let places = [
            lab.inside(),
            Place::here().netns(&lab.workload().netns).cgroup(&other),
        ];
        for place in places {
            ensure!(
                connected(place, "10.96.0.1:9080")?,
                "the exposed service is not reached"
            );
            ensure!(
                !connected(place, "10.96.0.4:9080")?,
                "not captured: {place:?}"
            );
        }
        Ok(())
    };
    captured(&lab)?;
    let swapped = both
        .replace(&own_path, "(theirs)")
        .replace(&other_path, &own_path)
        .replace("(theirs)", &other_path);
    lab.write("workload.yaml", &swapped)?;
    captured(&lab)?;
    // The cgroup that was the first one's is the other one's now, and counted as such.
    let refused = |lab: &Lab| -> anyhow::Result<u64> {
        let status = lab.agent()?.status()?;
        let workloads = status["workloads"].as_array().into_iter().flatten();
        let another = workloads
            .into_iter()
            .find(|of| of["workload"] == "prod-us1/another");
        let decisions = another
            .and_then(|of| of["decisions"].as_array())
            .into_iter()
            .flatten();
        Ok(decisions
            .filter(|of| of["reason"] == "registry-only")
            .filter_map(|of| of["count"].as_u64())
            .sum())
    };
    let before = refused(&lab)?;
    ensure!(!connected(lab.inside(), "10.96.0.4:9080")?, "not captured");
    ensure!(
        refused(&lab)? == before + 1,
        "the cgroup did not change hands"
    );
    Ok(())
}

#[test]
fn what_cannot_be_found_any_more_keeps_its_last_good_plan() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent()?;
    let file = std::fs::read_to_string(lab.config_dir().join("workload.yaml"))?;
    let root = lab.in_root("").display().to_string();
    let own = lab.cgroup().below_root()?;
    for (right, wrong) in [(&root, "/no/such/root"), (&own, "sct-no-such-cgroup")] {
        lab.write("workload.yaml", &file.replace(right, wrong))?;
        let status = lab.agent()?.wait_until("the problem", |status| {
            status["workloads"][0]["problem"]
                .as_str()
                .is_some_and(|text| text.contains(wrong))
        })?;
        ensure!(
            status["workloads"][0]["actual"].is_string(),
            "nothing in force: {status}"
        );
        ensure!(
            !connected(lab.inside(), "10.96.0.4:9080")?,
            "let go for {wrong}"
        );
    }
    lab.write("workload.yaml", &file)?;
    lab.wait_captured()?;
    ensure!(!connected(lab.inside(), "10.96.0.4:9080")?, "not captured");
    Ok(())
}

#[test]
fn a_cgroup_that_comes_late_is_waited_for() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    let parent = Cgroup::new("late")?;
    let path = parent.path().strip_prefix(Cgroup::root()?)?.join("child");
    let workload = std::fs::read_to_string(lab.config_dir().join("workload.yaml"))?;
    let own = lab.cgroup().below_root()?;
    lab.write_only(
        "workload.yaml",
        &workload.replace(&own, &path.display().to_string()),
    )?;
    // It has nothing to capture yet, which is no reason not to start.
    lab.start_agent_unready()?;
    let status = lab
        .agent()?
        .wait_until("the problem to be told", |status| {
            status["workloads"][0]["problem"].is_string()
        })?;
    ensure!(status["workloads"][0]["state"] == "pending", "{status}");
    let problem = status["workloads"][0]["problem"]
        .as_str()
        .unwrap_or_default();
    ensure!(
        problem.contains("child"),
        "the problem names no cgroup: {problem}"
    );
    let child = parent.child("child")?;
    lab.wait_captured()?;
    let place = Place::here().netns(&lab.workload().netns).cgroup(&child);
    ensure!(!connected(place, "10.96.0.4:9080")?, "not captured");
    Ok(())
}

#[test]
fn listeners_that_were_open_before_and_that_restart_are_found() -> anyhow::Result<()> {
    require_root!();
    let mut lab = Lab::new()?;
    let start = |lab: &Lab, name: &str| {
        let address: SocketAddr = ([127, 0, 0, 1], 8080).into();
        Server::tcp(address).place(lab.inside()).name(name).start()
    };
    let first = start(&lab, "first")?;
    lab.write(
        "sidecar.yaml",
        "apiVersion: networking.istio.io/v1\nkind: Sidecar\n\
         metadata: {name: in, namespace: prod-us1}\n\
         spec:\n  ingress:\n  - port: {number: 9080, protocol: TCP, name: in}\n    \
         defaultEndpoint: 127.0.0.1:8080\n",
    )?;
    lab.write_workload(&[])?;
    lab.write_mesh("{}\n")?;
    lab.start_agent()?;
    let call = |lab: &Lab| -> anyhow::Result<Option<String>> {
        let address: SocketAddr = (lab.workload().v4, 9080).into();
        let outcome = Client::tcp(address).place(lab.outside()).banner()?;
        Ok(outcome.banner.map(|seen| seen.name))
    };
    assert_eq!(
        call(&lab)?.as_deref(),
        Some("first"),
        "open before the agent came"
    );
    drop(first);
    assert_eq!(
        call(&lab)?,
        None,
        "nobody listens: refused, not passed elsewhere"
    );
    let _second = start(&lab, "second")?;
    assert_eq!(call(&lab)?.as_deref(), Some("second"), "after a restart");
    Ok(())
}

#[test]
fn a_second_agent_with_the_same_directories_does_not_start() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent()?;
    let bpffs = lab.agent()?.bpffs();
    let config = lab.config_dir();
    // The first time the run directory is the same, the second time only the BPF file system.
    for run_dir in [lab.agent()?.run_dir(), lab.in_root("/run")] {
        let output = lab.agent()?.cli(&[
            "run".as_ref(),
            "--config".as_ref(),
            config.as_os_str(),
            "--bpffs".as_ref(),
            bpffs.as_os_str(),
            "--run-dir".as_ref(),
            run_dir.as_os_str(),
        ])?;
        ensure!(!output.status.success(), "a second agent ran");
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(error.contains("another agent"), "{error}");
    }
    lab.write(
        "more.yaml",
        &service("prod-us1", "more", "10.96.0.9".parse()?, 80),
    )?;
    lab.wait_captured()?;
    ensure!(
        !connected(lab.inside(), "10.96.0.4:9080")?,
        "the first one was disturbed"
    );
    Ok(())
}
