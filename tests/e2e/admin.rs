//! Who may ask the agent.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, process::Output};

use anyhow::ensure;
use sidecar_tests::{Agent, Place, lab::Lab, programs, require_root};

const SOMEBODY: u32 = 1234;

fn set_mode(path: &std::path::Path, mode: u32) -> anyhow::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(())
}

/// A copy of the agent that everybody can run, beside its run directory, which everybody can reach.
fn program_for_all(agent: &Agent) -> anyhow::Result<PathBuf> {
    let run_dir = agent.run_dir();
    let dir = run_dir.parent().unwrap_or(&run_dir).to_owned();
    set_mode(&dir, 0o755)?;
    let copy = dir.join("agent");
    // By another process: see `pretender` in the harness.
    let status = std::process::Command::new("cp")
        .arg(programs::agent()?)
        .arg(&copy)
        .status()?;
    ensure!(status.success(), "cp failed");
    set_mode(&copy, 0o755)?;
    Ok(copy)
}

fn ask_as(uid: u32, program: &PathBuf, agent: &Agent) -> anyhow::Result<Output> {
    Ok(Place::here()
        .user(uid, uid)
        .command(program)
        .args(["status", "--run-dir"])
        .arg(agent.run_dir())
        .current_dir("/")
        .output()?)
}

#[test]
fn only_root_is_answered_even_if_the_socket_is_open_to_all() -> anyhow::Result<()> {
    require_root!();
    let mut lab = Lab::new()?;
    lab.write_workload(&[])?;
    lab.write_mesh("{}\n")?;
    lab.start_agent()?;
    let agent = lab.agent()?;
    let socket = agent.run_dir().join("admin.sock");
    let program = program_for_all(agent)?;
    let mode = fs::metadata(&socket)?.permissions().mode() & 0o7777;
    ensure!(mode == 0o600, "{mode:o}");

    let output = ask_as(SOMEBODY, &program, agent)?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(
        !output.status.success() && error.contains("are you root"),
        "{error}"
    );

    set_mode(&socket, 0o666)?;
    let output = ask_as(SOMEBODY, &program, agent)?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(
        !output.status.success() && output.stdout.is_empty(),
        "answered"
    );
    ensure!(
        error.contains("user 1234 may not ask this agent anything"),
        "{error}"
    );
    let line = agent.wait_log("admin socket: refused")?;
    ensure!(line.contains("uid=1234"), "{line}");
    ensure!(
        ask_as(0, &program, agent)?.status.success(),
        "root is refused"
    );
    Ok(())
}

#[test]
fn a_directory_that_others_may_write_to_is_refused() -> anyhow::Result<()> {
    require_root!();
    let mut lab = Lab::new()?;
    lab.write_workload(&[])?;
    lab.write_mesh("{}\n")?;
    lab.start_agent()?;
    let run_dir = lab.agent()?.run_dir();
    lab.agent_mut()?.stop()?;
    for (mode, owner) in [(0o777, 0), (0o1777, 0), (0o775, 0), (0o755, SOMEBODY)] {
        set_mode(&run_dir, mode)?;
        std::os::unix::fs::chown(&run_dir, Some(owner), None)?;
        let error = lab.agent_mut()?.start().err();
        let error = error.map_or_else(String::new, |error| format!("{error:#}"));
        ensure!(
            error.contains("others may write to it"),
            "{mode:o}: {error}"
        );
        // Its process has ended, which the harness is to know.
        let _ = lab.agent_mut()?.stop();
    }
    set_mode(&run_dir, 0o755)?;
    std::os::unix::fs::chown(&run_dir, Some(0), None)?;
    lab.agent_mut()?.start()?;
    lab.wait_captured()
}
