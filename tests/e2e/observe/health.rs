//! `/livez` and `/readyz`: the truth, in both cases.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use sidecar_tests::{
    Cgroup, DEADLINE,
    cleanup::{self, Cleanup},
    poll::poll_result,
    require_root,
    scrape::{get, get_at},
};

use crate::fixture::{registry_only, workload_entry};

#[test]
fn not_ready_while_a_workload_is_pending() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent()?;
    let agent = lab.agent()?;
    let ready = |code: u16| -> anyhow::Result<Value> {
        let body = poll_result(DEADLINE, &format!("/readyz to answer {code}"), || {
            let answer = get(agent, "/readyz")?;
            ensure!(answer.code == code, "{answer:?}");
            Ok(answer.body)
        })?;
        serde_json::from_str(&body).context(body)
    };
    let report = ready(200)?;
    ensure!(report["ready"] == true, "{report}");
    ensure!(report["pending"] == serde_json::json!([]), "{report}");

    // Its cgroup is not there yet.
    let parent = Cgroup::new("parent")?;
    let netns = lab.workload().netns.path().display().to_string();
    let path = format!("{}/later", parent.below_root()?);
    lab.write("later.yaml", &workload_entry("later", &path, &netns))?;
    let report = ready(503)?;
    ensure!(report["ready"] == false, "{report}");
    let pending = report["pending"].as_array().context("no list")?;
    let [one] = &pending[..] else {
        anyhow::bail!("not one thing is pending: {report}")
    };
    ensure!(one["what"] == "workload prod-us1/later", "{report}");
    let why = one["why"].as_str().unwrap_or_default();
    ensure!(why.contains(&path), "{report}");
    ensure!(get(agent, "/livez")?.code == 200, "pending is not dead");

    let later = parent.child("later")?;
    ready(200)?;
    drop(later);
    ready(503)?;
    fs::remove_file(lab.config_dir().join("later.yaml"))?;
    ready(200)?;
    Ok(())
}

/// A thread of a process, stopped by the freezer of cgroup2, while the others go on.
struct Frozen {
    dir: PathBuf,
    _cleanup: Cleanup,
    _domain: Cgroup,
}

impl Frozen {
    /// The main thread of a process.
    fn main_thread(pid: u32) -> anyhow::Result<Self> {
        let domain = Cgroup::new("stalled")?;
        domain.attach(pid)?;
        let dir = domain.path().join("main");
        fs::create_dir(&dir)?;
        let cleanup = cleanup::on_drop({
            let (dir, domain) = (dir.clone(), domain.path().to_owned());
            move || {
                let _ = fs::write(dir.join("cgroup.freeze"), "0");
                // The thread is in the cgroup until it runs again.
                let removed = poll_result(DEADLINE, "the frozen thread to go", || {
                    let _ = fs::write(domain.join("cgroup.threads"), pid.to_string());
                    Ok(fs::remove_dir(&dir)?)
                });
                if let Err(error) = removed {
                    eprintln!("left behind: {}: {error:#}", dir.display());
                }
            }
        });
        fs::write(dir.join("cgroup.type"), "threaded")?;
        fs::write(dir.join("cgroup.threads"), pid.to_string())?;
        let frozen = Self {
            dir,
            _cleanup: cleanup,
            _domain: domain,
        };
        fs::write(frozen.dir.join("cgroup.freeze"), "1")?;
        poll_result(DEADLINE, "the thread to be frozen", || {
            let events = fs::read_to_string(frozen.dir.join("cgroup.events"))?;
            ensure!(events.contains("frozen 1"), "{events}");
            Ok(())
        })?;
        Ok(frozen)
    }
}

#[test]
fn not_live_while_the_main_loop_stands_still() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent_with(|agent| agent.args(["--stall-limit", "2"]))?;
    lab.wait_captured()?;
    let agent = lab.agent()?;
    let status = agent.status()?;
    let address = status["metrics"].as_str().context("nothing is served")?;
    ensure!(get_at(address, "/livez")?.code == 200);
    let frozen = Frozen::main_thread(agent.pid().context("no agent")?)?;
    let answer = poll_result(DEADLINE, "/livez to fail", || {
        let answer = get_at(address, "/livez")?;
        ensure!(answer.code == 503, "{answer:?}");
        Ok(answer)
    })?;
    ensure!(answer.body.contains("has not turned for"), "{answer:?}");
    let answer = get_at(address, "/readyz")?;
    ensure!(answer.code == 503, "{answer:?}");
    let report: Value = serde_json::from_str(&answer.body)?;
    ensure!(report["pending"][0]["what"] == "main loop", "{report}");
    // It does not hang, either.
    ensure!(get_at(address, "/metrics")?.code == 503);
    drop(frozen);
    poll_result(DEADLINE, "/livez to answer again", || {
        let answer = get_at(address, "/livez")?;
        ensure!(answer.code == 200, "{answer:?}");
        Ok(())
    })?;
    ensure!(get_at(address, "/readyz")?.code == 200);
    ensure!(get_at(address, "/metrics")?.code == 200);
    Ok(())
}

#[test]
fn nothing_is_served_where_nothing_is_asked_for() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent_with(|agent| agent.env("SIDECAR_AGENT_METRICS_ADDRESS", ""))?;
    let status = lab.agent()?.status()?;
    ensure!(status["metrics"].is_null(), "{status}");
    let pid = lab.agent()?.pid().context("no agent")?;
    let listeners = std::process::Command::new("ss").args(["-Htlnp"]).output()?;
    let listeners = String::from_utf8(listeners.stdout)?;
    ensure!(!listeners.contains(&format!("pid={pid},")), "{listeners}");
    Ok(())
}

#[test]
fn other_paths_and_methods_are_refused() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent()?;
    let answer = get(lab.agent()?, "/debug")?;
    ensure!(answer.code == 404, "{answer:?}");
    let status = lab.agent()?.status()?;
    let address = status["metrics"].as_str().context("nothing is served")?;
    let error = ureq::post(format!("http://{address}/metrics"))
        .send_empty()
        .expect_err("POST is refused");
    ensure!(matches!(error, ureq::Error::StatusCode(405)), "{error}");
    Ok(())
}
