//! What outlives the agent, and how it is told to go.

use std::{
    ffi::OsStr,
    fs,
    net::SocketAddr,
    process::{Command, Output, Stdio},
    time::Instant,
};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use sidecar_tests::{
    Client, DEADLINE, Place, Probe,
    lab::{Lab, WORKLOAD},
    poll::poll_result,
    programs, require_root,
    tempdir::TempDir,
};

use crate::fixture::registry_only;

/// What the Sidecar does not expose, and `REGISTRY_ONLY` refuses.
const REFUSED: &str = "10.96.0.4:9080";
/// What it exposes.
const EXPOSED: &str = "10.96.0.1:9080";

fn connected(place: Place<'_>, address: &str) -> anyhow::Result<bool> {
    Ok(Client::tcp(address.parse::<SocketAddr>()?)
        .place(place)
        .connect()?
        .connected)
}

fn captured(lab: &Lab) -> anyhow::Result<()> {
    ensure!(!connected(lab.inside(), REFUSED)?, "not captured");
    ensure!(
        connected(lab.inside(), EXPOSED)?,
        "what is exposed is not reached"
    );
    Ok(())
}

fn counted(lab: &Lab) -> anyhow::Result<u64> {
    let decisions = lab.decisions("outbound")?;
    let refused = decisions
        .iter()
        .find(|(reason, _)| reason == "registry-only");
    Ok(refused.map_or(0, |(_, count)| *count))
}

fn ok(output: Output) -> anyhow::Result<String> {
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn killed_or_stopped_capture_goes_on_and_the_next_agent_adopts_it() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent()?;
    captured(&lab)?;
    assert_eq!(counted(&lab)?, 1);
    lab.agent_mut()?.kill()?;
    captured(&lab)?;
    lab.agent_mut()?.start()?;
    captured(&lab)?;
    lab.wait_captured()?;
    assert_eq!(counted(&lab)?, 3, "the kernel's counters begin anew");
    ensure!(
        lab.agent_mut()?.stop()?.success(),
        "SIGTERM is no clean end"
    );
    captured(&lab)?;
    lab.agent_mut()?.start()?;
    lab.wait_captured()?;
    captured(&lab)?;
    assert_eq!(counted(&lab)?, 5);
    Ok(())
}

#[test]
fn what_was_removed_while_no_agent_ran_is_let_go_unless_a_file_is_broken() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent()?;
    captured(&lab)?;
    lab.agent_mut()?.stop()?;
    let file = lab.config_dir().join("workload.yaml");
    let entry = fs::read_to_string(&file)?;
    fs::write(&file, "apiVersion: [")?;
    lab.agent_mut()?.start()?;
    captured(&lab).context("a broken file has let the workload go")?;
    let status = lab.agent()?.status()?;
    let cgroup = lab.cgroup().id()?;
    ensure!(
        status["unclaimed"][0]["cgroups"][0] == cgroup,
        "it is not told: {status}"
    );
    lab.write("workload.yaml", &entry)?;
    lab.wait_captured()?;
    captured(&lab)?;
    lab.agent_mut()?.stop()?;
    fs::remove_file(&file)?;
    lab.agent_mut()?.start()?;
    poll_result(DEADLINE, "the workload to be let go", || {
        ensure!(connected(lab.inside(), REFUSED)?, "it is captured");
        Ok(())
    })
}

/// As long as it cannot be attached, what an earlier agent has made of it holds.
#[test]
fn what_cannot_be_attached_when_an_agent_starts_stays_captured() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent()?;
    lab.agent_mut()?.stop()?;
    let file = lab.config_dir().join("workload.yaml");
    let entry = fs::read_to_string(&file)?;
    let netns = lab.workload().netns.path().display().to_string();
    fs::write(&file, entry.replace(&netns, "/no/such/namespace"))?;
    lab.agent_mut()?.start()?;
    lab.agent()?.wait_until("the problem", |status| {
        let problem = status["workloads"][0]["problem"].as_str();
        problem.is_some_and(|text| text.contains("/no/such/namespace"))
    })?;
    captured(&lab)?;
    lab.write("workload.yaml", &entry)?;
    lab.wait_captured()?;
    captured(&lab)
}

/// Also not for the moment until somebody looks at it again.
#[test]
fn what_is_off_is_not_captured_when_it_comes() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    let file = lab.config_dir().join("workload.yaml");
    let entry = fs::read_to_string(&file)?;
    fs::remove_file(&file)?;
    lab.start_agent_unready()?;
    let probe = Probe::start(lab.inside())?;
    let off = "  annotations:\n    capture.sidecar-agent.io/capture: 'off'\n";
    lab.write("workload.yaml", &entry.replacen("  annotations:\n", off, 1))?;
    let was_captured = poll_result(DEADLINE, "the workload to be attached", || {
        let status = lab.agent()?.status()?;
        for _ in 0..50 {
            if probe.visit(REFUSED.parse()?)?.is_err() {
                return Ok(true);
            }
        }
        let state = &status["workloads"][0]["state"];
        ensure!(state == "off", "it is {state}");
        Ok(false)
    })?;
    ensure!(!was_captured, "captured for a moment");
    Ok(())
}

fn toggle(lab: &Lab, to: &str) -> anyhow::Result<Value> {
    let output = lab.agent()?.cli(&["capture", to, WORKLOAD, "-o", "json"])?;
    Ok(serde_json::from_str(&ok(output)?)?)
}

#[test]
fn capture_is_toggled_live_and_stays_so() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent()?;
    captured(&lab)?;
    let off = toggle(&lab, "off")?;
    ensure!(
        off["wanted"] == false && off["actual"] == false && off["by"] == "operator",
        "{off}"
    );
    ensure!(connected(lab.inside(), REFUSED)?, "still captured");
    let status = lab.agent()?.status()?;
    ensure!(status["workloads"][0]["state"] == "off", "{status}");

    // It stays so when the agent is killed, and when the plan changes.
    lab.agent_mut()?.kill()?;
    ensure!(
        connected(lab.inside(), REFUSED)?,
        "captured without an agent"
    );
    lab.agent_mut()?.start()?;
    lab.write(
        "more.yaml",
        &sidecar_tests::lab::service("prod-us1", "more", "10.96.0.9".parse()?, 80),
    )?;
    ensure!(
        connected(lab.inside(), REFUSED)?,
        "captured after a restart"
    );

    toggle(&lab, "on")?;
    captured(&lab)?;
    // What the operator says counts for more than the annotation.
    lab.write_workload(&["capture.sidecar-agent.io/capture: 'off'"])?;
    captured(&lab)?;
    let reset = toggle(&lab, "reset")?;
    ensure!(
        reset["wanted"] == false && reset["by"] == "annotation",
        "{reset}"
    );
    ensure!(
        connected(lab.inside(), REFUSED)?,
        "the annotation is not heeded"
    );
    lab.write_workload(&[])?;
    captured(&lab)?;

    let output = lab.agent()?.cli(&["capture", "off", "prod-us1/nobody"])?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(
        !output.status.success() && error.contains(WORKLOAD),
        "the workloads that there are are not told: {error}"
    );
    Ok(())
}

/// Its cost is that of asking the agent: no decision is cached anywhere.
#[test]
fn a_toggle_holds_for_the_next_connection() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent()?;
    let mut times = Vec::new();
    for round in 0..20 {
        let off = round % 2 == 0;
        let started = Instant::now();
        toggle(&lab, if off { "off" } else { "on" })?;
        times.push(started.elapsed());
        ensure!(connected(lab.inside(), REFUSED)? == off, "round {round}");
    }
    times.sort();
    println!(
        "toggling, with the start of the command: median {:?}, longest {:?}",
        times[times.len() / 2],
        times[times.len() - 1]
    );
    Ok(())
}

#[test]
fn uninstalled_nothing_is_left() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent()?;
    captured(&lab)?;
    toggle(&lab, "on")?;
    let pins = lab.agent()?.bpffs().join("sidecar-agent");
    let dry = lab
        .agent()?
        .cli(&["uninstall", "--dry-run", "-o", "json"])?;
    let dry: Value = serde_json::from_str(&ok(dry)?)?;
    ensure!(dry["links"].as_array().map(Vec::len) == Some(11), "{dry}");
    captured(&lab).context("the dry run has removed something")?;
    let running = lab.agent()?.cli(&["uninstall"])?;
    let error = String::from_utf8_lossy(&running.stderr);
    ensure!(
        !running.status.success() && error.contains("another agent uses it"),
        "{error}"
    );
    captured(&lab)?;

    lab.agent_mut()?.stop()?;
    captured(&lab)?;
    let text = ok(lab.agent()?.cli(&["uninstall"])?)?;
    ensure!(text.contains("removed: 11 links"), "{text}");
    ensure!(connected(lab.inside(), REFUSED)?, "still captured");
    let agent = lab.agent()?;
    for path in [pins, agent.run_dir(), agent.state_dir()] {
        ensure!(!path.exists(), "{} is left", path.display());
    }
    Ok(())
}

#[test]
fn a_bpf_file_system_is_mounted_where_none_is() -> anyhow::Result<()> {
    require_root!();
    let lab = registry_only()?;
    let dir = TempDir::new("sidecar-bpffs-")?;
    let at = |name: &str| dir.path().join(name);
    // In a mount namespace of its own, with which it goes.
    let mut agent = Command::new("unshare")
        .arg("--mount")
        .arg(programs::agent()?)
        .args(["run", "--metrics-address", ""])
        .args([OsStr::new("--config"), lab.config_dir().as_os_str()])
        .args([OsStr::new("--bpffs"), at("bpf").as_os_str()])
        .args([OsStr::new("--run-dir"), at("run").as_os_str()])
        .args([OsStr::new("--state-dir"), at("state").as_os_str()])
        .stderr(Stdio::null())
        .spawn()?;
    let mounts = format!("/proc/{}/mountinfo", agent.id());
    let wanted = format!(" {} ", at("bpf").display());
    let mounted = poll_result(DEADLINE, "the mount", || {
        let mounts = fs::read_to_string(&mounts)?;
        let mount = mounts.lines().find(|line| line.contains(&wanted));
        let mount = mount.context("nothing is mounted there")?;
        // The source that was given is not told before kernel 5.11.
        ensure!(mount.contains(" - bpf "), "{mount}");
        Ok(())
    });
    agent.kill()?;
    agent.wait()?;
    mounted
}
