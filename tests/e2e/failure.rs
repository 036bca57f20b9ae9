//! The failure policy: an annotation, and the node's default.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use rustix::io::Errno;
use serde_json::{Value, json};
use sidecar_tests::{
    Client, Place, Server,
    lab::{Lab, WORKLOAD, service},
    require_root,
};

use crate::fixture::{registry_only, relayed_service};

const NODE: &str = "SIDECAR_AGENT_FAILURE_POLICY";
const DETAILS: &str = "10.96.0.1:9080";
/// What a `REGISTRY_ONLY` workload does not reach.
const SECRET: &str = "10.96.0.4:9080";
const PROXY: u32 = 1337;

/// A refusal takes no time; this is for a client that has to be started.
const PROMPT: Duration = Duration::from_secs(3);

fn annotation(policy: &str) -> String {
    format!("capture.sidecar-agent.io/failure-policy: {policy}")
}

/// Whom a connection reaches; `None`: it is refused, or reset, and promptly so.
fn reached(place: Place<'_>, address: &str) -> anyhow::Result<Option<String>> {
    let started = Instant::now();
    let outcome = Client::tcp(address.parse::<SocketAddr>()?)
        .place(place)
        .banner()?;
    if let Some(banner) = outcome.banner {
        return Ok(Some(banner.name));
    }
    let is_refused = outcome.errno == Some(Errno::CONNREFUSED.raw_os_error());
    let error = outcome.error.as_deref().unwrap_or_default();
    ensure!(
        is_refused || error.contains("reset by peer"),
        "{address}: {outcome:?}"
    );
    let elapsed = started.elapsed();
    ensure!(elapsed < PROMPT, "{address}: {elapsed:?}");
    Ok(None)
}

fn counted(lab: &Lab, direction: &str, reason: &str) -> anyhow::Result<u64> {
    let decisions = lab.decisions(direction)?;
    let found = decisions.into_iter().find(|(name, _)| name == reason);
    Ok(found.map_or(0, |(_, count)| count))
}

/// What a verb that only reads prints, with the settings of the lab's agent.
fn verb(lab: &Lab, args: &[&str]) -> anyhow::Result<Value> {
    let output = lab.agent()?.cli(&[args, &["-o", "json"]].concat())?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// A lab whose workload has a proxy that does not run.
fn with_proxy(annotations: &[&str]) -> anyhow::Result<Lab> {
    let mut lab = Lab::new()?;
    lab.announce("10.96.0.0/16")?;
    lab.serve(DETAILS, "details")?;
    lab.serve_inside("0.0.0.0:8080", "app")?;
    lab.write_mesh("{}\n")?;
    let proxy = "capture.sidecar-agent.io/proxy: external";
    lab.write_workload(&[annotations, &[proxy]].concat())?;
    Ok(lab)
}

fn proxy(lab: &Lab, port: u16) -> anyhow::Result<Server> {
    Server::tcp(SocketAddr::from(([0, 0, 0, 0], port)))
        .place(lab.inside().user(PROXY, PROXY))
        .name("proxy")
        .start()
}

/// The proxy comes and goes; meanwhile, whom its connections reach.
fn comes_and_goes(lab: &Lab, meanwhile: [Option<&str>; 2]) -> anyhow::Result<()> {
    let inbound = format!("{}:8080", lab.workload().v4);
    let reach = |expected: [Option<&str>; 2]| -> anyhow::Result<()> {
        let found = [
            reached(lab.inside(), DETAILS)?,
            reached(lab.outside(), &inbound)?,
        ];
        assert_eq!(found.each_ref().map(Option::as_deref), expected);
        Ok(())
    };
    for _ in 0..2 {
        reach(meanwhile)?;
        let _proxies = [proxy(lab, 15001)?, proxy(lab, 15006)?];
        reach([Some("proxy"); 2])?;
    }
    reach(meanwhile)
}

#[test]
fn without_a_proxy_a_workloads_annotation_decides() -> anyhow::Result<()> {
    require_root!();
    let mut lab = with_proxy(&[&annotation("proxy-gone=open")])?;
    lab.start_agent_with(|agent| agent.env(NODE, "map-full=open"))?;
    lab.wait_captured()?;
    comes_and_goes(&lab, [Some("details"), Some("app")])?;
    assert_eq!(counted(&lab, "outbound", "proxy-gone")?, 3);
    assert_eq!(counted(&lab, "inbound", "proxy-gone")?, 3);

    let policy = json!({
        "proxy-gone": "open", "map-full": "open",
        "unknown-workload": "closed", "relay-target-gone": "closed",
    });
    let gone = json!({
        "case": "proxy-gone", "policy": "open", "path": "pass", "reason": "proxy-gone",
    });
    let inbound = format!("inbound:{}:8080", lab.workload().v4);
    for destination in [DETAILS, &inbound] {
        let explained = verb(&lab, &["explain", WORKLOAD, destination])?;
        assert_eq!(explained["path"], "proxy");
        assert_eq!(explained["failure_policy"], policy);
        assert_eq!(explained["while_gone"], gone);
    }
    let planned = verb(&lab, &["plan"])?;
    assert_eq!(planned[0]["failure_policy"], policy);
    let rules = planned[0]["rules"].as_array().context("no rules")?;
    let to_proxy = rules.iter().filter(|rule| rule["path"] == "proxy");
    let to_proxy: Vec<_> = to_proxy.map(|rule| &rule["while_gone"]).collect();
    ensure!(!to_proxy.is_empty(), "{planned}");
    assert!(to_proxy.iter().all(|found| **found == gone), "{planned}");

    // Without it, the default.
    lab.write_workload(&["capture.sidecar-agent.io/proxy: external"])?;
    lab.wait_captured()?;
    comes_and_goes(&lab, [None, None])?;
    let explained = verb(&lab, &["explain", WORKLOAD, DETAILS])?;
    assert_eq!(explained["while_gone"]["path"], "deny");
    Ok(())
}

#[test]
fn the_nodes_default_holds_unless_a_workload_says_otherwise() -> anyhow::Result<()> {
    require_root!();
    let mut lab = with_proxy(&[])?;
    lab.start_agent_with(|agent| agent.args(["--failure-policy", "proxy-gone=open"]))?;
    lab.wait_captured()?;
    comes_and_goes(&lab, [Some("details"), Some("app")])?;
    let closed = annotation("proxy-gone=closed");
    lab.write_workload(&["capture.sidecar-agent.io/proxy: external", &closed])?;
    lab.wait_captured()?;
    comes_and_goes(&lab, [None, None])
}

/// More services than there is room for.
fn services() -> String {
    let one = |number| {
        let ip = [10, 96, 0, number].into();
        service("prod-us1", &format!("s{number}"), ip, 9080)
    };
    (20..40).map(one).collect()
}

/// A lab whose workload's plan needs more rules than there are.
fn too_large(annotations: &[&str]) -> anyhow::Result<Lab> {
    let mut lab = registry_only()?;
    lab.serve_inside("0.0.0.0:8080", "app")?;
    lab.write("more.yaml", &services())?;
    lab.write_workload(annotations)?;
    lab.start_agent_with(|agent| agent.args(["--max-rules", "16"]))?;
    Ok(lab)
}

fn pending(lab: &Lab, because: &str) -> anyhow::Result<()> {
    lab.agent()?
        .wait_until(because, |status| {
            let workload = &status["workloads"][0];
            let problem = workload["problem"].as_str().unwrap_or_default();
            workload["state"] == "pending"
                && workload["capture"]["actual"] == false
                && problem.contains("map OUTBOUND is full")
                && problem.contains(because)
        })
        .map(drop)
}

#[test]
fn a_first_plan_that_does_not_fit_closed() -> anyhow::Result<()> {
    require_root!();
    let mut lab = too_large(&[])?;
    let inbound = format!("{}:8080", lab.workload().v4);
    let refused = |lab: &Lab| -> anyhow::Result<()> {
        pending(
            lab,
            "everything is refused (failure policy map-full=closed)",
        )?;
        assert_eq!(reached(lab.inside(), DETAILS)?, None);
        assert_eq!(reached(lab.outside(), &inbound)?, None);
        assert_eq!(
            reached(lab.inside(), "127.0.0.1:8080")?.as_deref(),
            Some("app")
        );
        assert_eq!(reached(lab.inside(), &inbound)?.as_deref(), Some("app"));
        Ok(())
    };
    refused(&lab)?;
    assert_eq!(counted(&lab, "outbound", "map-full")?, 1);
    assert_eq!(counted(&lab, "inbound", "map-full")?, 1);
    // Without the agent, and with the next one.
    lab.agent_mut()?.kill()?;
    assert_eq!(reached(lab.inside(), DETAILS)?, None);
    lab.agent_mut()?.start()?;
    refused(&lab)?;
    assert_eq!(counted(&lab, "outbound", "map-full")?, 3);
    // What its annotation says holds for it too.
    lab.write_workload(&["capture.sidecar-agent.io/capture: 'off'"])?;
    assert_eq!(reached(lab.inside(), DETAILS)?.as_deref(), Some("details"));
    lab.write_workload(&[&annotation("open")])?;
    pending(&lab, "nothing is captured (failure policy map-full=open)")?;
    assert_eq!(reached(lab.inside(), DETAILS)?.as_deref(), Some("details"));
    lab.write_workload(&[])?;
    refused(&lab)?;
    // It fits: in force as if nothing had been.
    lab.write("more.yaml", "# Nothing any more.\n")?;
    lab.wait_captured()?;
    assert_eq!(reached(lab.inside(), DETAILS)?.as_deref(), Some("details"));
    // It does not fit any more: the last good plan stays.
    lab.write("more.yaml", &services())?;
    lab.agent()?.wait_until("the plan to be stale", |status| {
        status["workloads"][0]["state"] == "stale"
    })?;
    assert_eq!(reached(lab.inside(), DETAILS)?.as_deref(), Some("details"));
    Ok(())
}

#[test]
fn a_first_plan_that_does_not_fit_open() -> anyhow::Result<()> {
    require_root!();
    let lab = too_large(&[&annotation("map-full=open")])?;
    pending(&lab, "nothing is captured (failure policy map-full=open)")?;
    // Also what the Sidecar does not expose.
    for (address, name) in [(DETAILS, "details"), (SECRET, "secret")] {
        assert_eq!(reached(lab.inside(), address)?.as_deref(), Some(name));
    }
    Ok(())
}

/// How many entries each map has.
fn entries(status: &Value) -> Vec<(&Value, &Value)> {
    let maps = status["maps"].as_array().into_iter().flatten();
    maps.map(|of| (&of["map"], &of["entries"])).collect()
}

/// Whatever the policy: it is for workloads of which nothing was in force.
#[test]
fn a_plan_that_does_not_fit_any_more_leaves_the_last_good_one() -> anyhow::Result<()> {
    require_root!();
    for annotations in [vec![], vec![annotation("open")]] {
        let annotations: Vec<&str> = annotations.iter().map(String::as_str).collect();
        let mut lab = registry_only()?;
        lab.write_workload(&annotations)?;
        lab.start_agent_with(|agent| agent.args(["--max-rules", "16"]))?;
        lab.wait_captured()?;
        let before = lab.agent()?.status()?;
        let in_force = |lab: &Lab| -> anyhow::Result<()> {
            let status = lab.agent()?.wait_until("the plan to be stale", |status| {
                status["workloads"][0]["state"] == "stale"
            })?;
            let of = &status["workloads"][0];
            let problem = of["problem"].as_str().unwrap_or_default();
            for words in [
                "the last good plan stays in force",
                "map OUTBOUND is full",
                "capacity 16",
                "--max-rules",
            ] {
                ensure!(problem.contains(words), "no {words:?} in {problem}");
            }
            ensure!(of["capture"]["actual"] == true, "{of}");
            ensure!(of["actual"] == before["workloads"][0]["actual"], "{of}");
            // Nothing of the one that does not fit stays.
            ensure!(entries(&status) == entries(&before), "{status}");
            ensure!(reached(lab.inside(), DETAILS)?.as_deref() == Some("details"));
            ensure!(reached(lab.inside(), SECRET)?.is_none(), "not exposed");
            Ok(())
        };
        lab.write("more.yaml", &services())?;
        in_force(&lab)?;
        // Without the agent, and with the next one.
        lab.agent_mut()?.kill()?;
        ensure!(reached(lab.inside(), DETAILS)?.as_deref() == Some("details"));
        ensure!(reached(lab.inside(), SECRET)?.is_none(), "let go");
        lab.agent_mut()?.start()?;
        in_force(&lab)?;
        lab.write("more.yaml", "# Nothing any more.\n")?;
        lab.wait_captured()?;
        ensure!(reached(lab.inside(), SECRET)?.is_none(), "let go");
    }
    Ok(())
}

#[test]
fn a_relays_target_that_comes_and_goes() -> anyhow::Result<()> {
    require_root!();
    for (policy, meanwhile) in [
        ("relay-target-gone=open", Some("details")),
        ("closed", None),
    ] {
        let mut lab = Lab::new()?;
        lab.announce("10.96.0.0/16")?;
        lab.serve(DETAILS, "details")?;
        lab.write("relayed.yaml", &relayed_service("10.96.0.1"))?;
        lab.write_mesh("{}\n")?;
        lab.write_workload(&[&annotation(policy)])?;
        lab.start_agent()?;
        let explained = verb(&lab, &["explain", WORKLOAD, DETAILS])?;
        assert_eq!(explained["path"], "relay", "{explained}");
        let path = meanwhile.map_or("deny", |_| "pass");
        assert_eq!(explained["while_gone"]["path"], path, "{explained}");
        let socket = lab.in_root("/run/local.sock");
        for _ in 0..2 {
            assert_eq!(reached(lab.inside(), DETAILS)?.as_deref(), meanwhile);
            let _server = Server::unix(&socket).name("local").start()?;
            assert_eq!(reached(lab.inside(), DETAILS)?.as_deref(), Some("local"));
        }
        let relay = &lab.agent()?.status()?["relay"];
        let fell_back = if meanwhile.is_some() { 2 } else { 0 };
        assert_eq!(relay["fell_back"], fell_back, "{relay}");
        assert_eq!(relay["failed"], 2 - fell_back, "{relay}");
    }
    Ok(())
}

#[test]
fn what_is_not_a_policy_is_refused() -> anyhow::Result<()> {
    require_root!();
    let mut lab = with_proxy(&[&annotation("proxy-gone=maybe")])?;
    lab.start_agent_unready()?;
    let config = lab.config_dir().display().to_string();
    let output = lab.agent()?.cli(&["check", &config])?;
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stdout);
    for part in [
        "SCA0221",
        "`maybe` is neither",
        "proxy-gone=open",
        "workload.yaml",
    ] {
        ensure!(text.contains(part), "no {part} in {text}");
    }
    let output = lab.agent()?.cli(&["plan", "--failure-policy", "ajar"])?;
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(text.contains("`ajar` is neither"), "{text}");
    Ok(())
}
