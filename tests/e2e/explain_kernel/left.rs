//! What an `explain` that was killed has left goes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::ensure;
use sidecar_tests::{DEADLINE, lab::Lab, poll::poll_result, require_root};

use super::{EXPOSED, agrees, ask};
use crate::fixture::registry_only;

/// Has a process that is no more leave its cgroup.
fn leave(lab: &Lab) -> anyhow::Result<PathBuf> {
    let mut child = Command::new("true").spawn()?;
    let pid = child.id();
    child.wait()?;
    make(lab.cgroup().path(), pid)
}

fn make(below: &Path, pid: u32) -> anyhow::Result<PathBuf> {
    let path = below.join(format!("sidecar-agent-explain-{pid}"));
    fs::create_dir(&path)?;
    Ok(path)
}

#[test]
fn the_next_explain_the_agent_and_uninstall_collect_it() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent()?;
    let left = leave(&lab)?;
    poll_result(DEADLINE, "the agent to collect it", || {
        ensure!(!left.exists(), "it is there");
        Ok(())
    })?;

    lab.agent_mut()?.stop()?;
    let left = leave(&lab)?;
    // Of one that still runs.
    let of_us = make(lab.cgroup().path(), std::process::id())?;
    let (said, success) = ask(&lab, &[EXPOSED])?;
    ensure!(success, "{said:#}");
    ensure!(!left.exists(), "the next one has not collected it");
    ensure!(of_us.exists(), "another's was taken away");
    fs::remove_dir(&of_us)?;
    agrees(&lab, &[EXPOSED], "direct", "egress-service")?;

    let left = leave(&lab)?;
    let dry = lab
        .agent()?
        .cli(&["uninstall", "--dry-run", "-o", "json"])?;
    let dry: serde_json::Value = serde_json::from_slice(&dry.stdout)?;
    let told = dry["cgroups"].as_array().into_iter().flatten();
    let told = told.filter(|path| path.as_str() == left.to_str()).count();
    ensure!(told == 1 && left.exists(), "{dry:#}");
    let removed = lab.agent()?.cli(&["uninstall"])?;
    ensure!(removed.status.success() && !left.exists(), "{removed:?}");
    Ok(())
}
