//! The plugin's program, and its place in the runtime's list.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use sidecar_tests::{
    DEADLINE, command::output, node::Node, poll::poll_result, programs, require_kube,
};

use super::world::{SECRET, World};
use crate::pods::require_node;

fn cni(node: &Node, words: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(programs::agent()?);
    command.arg("cni").args(words).args(["-o", "json"]);
    for (option, dir) in [("--cni-conf-dir", "net.d"), ("--cni-bin-dir", "bin")] {
        command.arg(option).arg(node.dir().join(dir));
    }
    output(&mut command)
}

fn read(path: &Path) -> anyhow::Result<Value> {
    Ok(serde_json::from_str(&fs::read_to_string(path)?)?)
}

fn has_ours(path: &Path) -> anyhow::Result<()> {
    let read = read(path)?;
    let last = read["plugins"].as_array().and_then(|all| all.last());
    let kind = last.map(|last| &last["type"]);
    ensure!(kind.is_some_and(|kind| kind == "sidecar-agent"), "{read}");
    Ok(())
}

/// By hand, with the program that was copied run by what was written.
#[test]
fn what_is_installed_runs_and_what_was_there_comes_back() -> anyhow::Result<()> {
    require_node!();
    let node = Node::new()?;
    for dir in ["net.d", "bin"] {
        fs::create_dir(node.dir().join(dir))?;
    }
    let list = node.dir().join("net.d/10-pods.conflist");
    let before = node.network("10.78.3.0/24", &[]).list();
    fs::write(&list, before.to_string())?;
    cni(
        &node,
        &[
            "install",
            "--cni-agent-absent",
            "fail",
            "--run-dir",
            "/no/such/dir",
        ],
    )?;
    has_ours(&list)?;
    let settings = &read(&list)?["plugins"][1];
    let expected = json!({
        "type": "sidecar-agent", "runDir": "/no/such/dir", "agentAbsent": "fail",
        "timeoutSeconds": 30, "excludeNamespaces": ["kube-system"],
    });
    ensure!(*settings == expected, "{settings}");
    let program = node.dir().join("bin/sidecar-agent");
    let versions = output(Command::new(&program).env("CNI_COMMAND", "VERSION"))?;
    ensure!(versions.contains("supportedVersions"), "{versions}");
    cni(&node, &["uninstall"])?;
    ensure!(read(&list)? == before, "{}", fs::read_to_string(&list)?);
    ensure!(!program.exists(), "the program is there still");
    Ok(())
}

/// While an agent runs, and when it has ended.
#[test]
fn an_agent_keeps_the_plugin_in_the_list_and_leaves_it_there() -> anyhow::Result<()> {
    require_kube!();
    require_node!();
    let world = World::new()?;
    let mut agent = world.run_agent()?;
    let list = world.conf_dir().join("10-pods.conflist");
    let theirs = world.node.network("10.78.4.0/24", &[]).list();
    let kept = |what: &str| poll_result(DEADLINE, what, || has_ours(&list));
    // There was no network before.
    fs::write(&list, theirs.to_string())?;
    kept("the plugin to be in the new list")?;
    for _ in 0..3 {
        let new = list.with_extension("new");
        fs::write(&new, theirs.to_string())?;
        fs::rename(&new, &list)?;
        kept("the plugin to be put back")?;
    }
    let program = world.bin_dir().join("sidecar-agent");
    fs::remove_file(&program)?;
    poll_result(DEADLINE, "the program to be put back", || {
        fs::metadata(&program).map(drop).context("it is not there")
    })?;
    // What it has written works, and finds the agent.
    let pod = world.schedule("shop", true)?;
    let args = pod.args(true);
    let chain = world.chain(&json!({})).read(&read(&list)?)?;
    chain.add(pod.sandbox(&args))?;
    ensure!(
        !world.first_call(&pod, SECRET)?,
        "the first connection passed"
    );
    agent.stop()?;
    has_ours(&list)?;
    ensure!(program.exists(), "the program went with the agent");
    Ok(())
}
