//! What the plugin does where no agent answers, and with what it does not understand.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use sidecar_tests::{
    Namespace,
    node::{Node, Refused, Sandbox},
    programs,
};

use crate::pods::{require_node, uid};

const POD: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=prod-us1;K8S_POD_NAME=shop;K8S_POD_UID=u";

/// Our plugin behind ptp, for an agent that is not there.
fn absent(node: &Node, more: &Value) -> Value {
    let mut plugin = json!({"type": "sidecar-agent", "runDir": node.dir().join("run")});
    for (key, value) in more.as_object().into_iter().flatten() {
        plugin[key] = value.clone();
    }
    plugin
}

struct Attempt {
    outcome: anyhow::Result<Value>,
    took: Duration,
}

fn add(node: &Node, plugin: Value, args: &str) -> anyhow::Result<Attempt> {
    let (netns, id) = (Namespace::new("pod")?, uid());
    let sandbox = Sandbox {
        netns: netns.path(),
        id: &id,
        args,
    };
    let chain = node.network("10.78.1.0/24", &[plugin]);
    let before = Instant::now();
    let outcome = chain.add(sandbox);
    let took = before.elapsed();
    // It never fails, whatever ADD has come to.
    chain
        .ask("DEL", &json!({}), sandbox)
        .context("DEL has failed")?;
    Ok(Attempt { outcome, took })
}

fn code(outcome: anyhow::Result<Value>) -> anyhow::Result<u64> {
    match outcome {
        Ok(result) => anyhow::bail!("it was let through: {result}"),
        Err(error) => Ok(error.downcast::<Refused>()?.code),
    }
}

/// Kubelet tries again.
const TRY_AGAIN: u64 = 11;

#[test]
fn without_an_agent_the_policy_decides() -> anyhow::Result<()> {
    require_node!();
    let node = Node::new()?;
    let allowed = add(&node, absent(&node, &json!({"agentAbsent": "allow"})), POD)?;
    let result = allowed.outcome?;
    ensure!(
        result["ips"][0]["address"] == "10.78.1.2/24",
        "not what ptp has made: {result}"
    );

    let refused = add(&node, absent(&node, &json!({"agentAbsent": "fail"})), POD)?;
    assert_eq!(code(refused.outcome)?, TRY_AGAIN);
    ensure!(refused.took < Duration::from_secs(5), "{:?}", refused.took);

    let waited = add(&node, absent(&node, &json!({"timeoutSeconds": 1})), POD)?;
    ensure!(waited.took >= Duration::from_secs(1), "{:?}", waited.took);
    let error = waited.outcome.unwrap_err().to_string();
    for part in ["prod-us1/shop", "no agent answers at", "agentAbsent"] {
        ensure!(error.contains(part), "{error}");
    }

    // Pods that never wait.
    let excluded = json!({"excludeNamespaces": ["prod-us1"]});
    add(&node, absent(&node, &excluded), POD)?.outcome?;
    add(&node, absent(&node, &json!({})), "")?.outcome?;
    Ok(())
}

/// Runs the plugin alone, and returns what it printed and whether it succeeded.
fn alone(command: &str, config: &str) -> anyhow::Result<(Value, bool)> {
    let mut child = Command::new(programs::agent()?)
        .env("CNI_COMMAND", command)
        .env("CNI_ARGS", POD)
        .env("CNI_CONTAINERID", "x")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_NETNS", "/no/such/netns")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child
        .stdin
        .take()
        .context("no stdin")?
        .write_all(config.as_bytes())?;
    let output = child.wait_with_output()?;
    let printed = match output.stdout.as_slice() {
        b"" => Value::Null,
        text => serde_json::from_slice(text)?,
    };
    Ok((printed, output.status.success()))
}

#[test]
fn the_protocol_of_the_specification() -> anyhow::Result<()> {
    let (versions, ok) = alone("VERSION", r#"{"cniVersion":"1.0.0"}"#)?;
    ensure!(ok && versions["cniVersion"] == "1.1.0", "{versions}");
    ensure!(
        versions["supportedVersions"]
            .as_array()
            .is_some_and(|all| all.contains(&json!("0.4.0")))
    );
    let run_dir = r#""runDir":"/no/such/dir","agentAbsent":"fail""#;
    let config = format!(r#"{{"cniVersion":"0.4.0",{run_dir}}}"#);
    for (command, config, code) in [
        ("ADD", "{", 6),
        ("ADD", r#"{"cniVersion":"9.0.0"}"#, 1),
        ("ADD", r#"{"cniVersion":"1.0.0","agentAbsent":"hope"}"#, 7),
        // It is no plugin that makes a network.
        ("ADD", config.as_str(), 7),
        ("WHAT", config.as_str(), 4),
        (
            "ADD",
            r#"{"cniVersion":"0.3.1","prevResult":{"cniVersion":"0.3.1","ips":[]}}"#,
            // No such namespace.
            5,
        ),
    ] {
        let (printed, ok) = alone(command, config)?;
        ensure!(
            !ok && printed["code"] == code,
            "{command} {config}: {printed}"
        );
        ensure!(
            printed["msg"].is_string() && printed["cniVersion"].is_string(),
            "{printed}"
        );
    }
    for command in ["DEL", "GC", "STATUS", "CHECK"] {
        let (printed, ok) = alone(command, &config)?;
        ensure!(ok && printed.is_null(), "{command}: {printed}");
    }
    let (printed, ok) = alone("DEL", "what?")?;
    ensure!(ok && printed.is_null(), "{printed}");
    Ok(())
}
