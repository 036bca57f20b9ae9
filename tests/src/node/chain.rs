//! A list of CNI plugins, run one after the other as a runtime does.

use std::{
    fmt,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::plugin;
use crate::{Namespace, Place, command::shown, programs};

/// The plugins of a network.
#[derive(Debug)]
pub struct Chain<'a> {
    node: &'a Namespace,
    version: String,
    plugins: Vec<Value>,
}

/// The sandbox that plugins are asked about.
#[derive(Clone, Copy, Debug)]
pub struct Sandbox<'a> {
    /// Its network namespace.
    pub netns: &'a Path,
    /// Its id.
    pub id: &'a str,
    /// `CNI_ARGS`.
    pub args: &'a str,
}

/// What a plugin said as it refused.
#[derive(Clone, Debug)]
pub struct Refused {
    /// The error's code.
    pub code: u64,
    /// Its text.
    pub message: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

impl std::error::Error for Refused {}

impl<'a> Chain<'a> {
    pub(super) fn new(
        node: &'a Namespace,
        version: &str,
        plugins: impl IntoIterator<Item = Value>,
    ) -> Self {
        Self {
            node,
            version: version.to_owned(),
            plugins: plugins.into_iter().collect(),
        }
    }

    /// The chain of a list of plugins, as it is written in a file.
    ///
    /// # Errors
    /// When it is none.
    pub fn read(&self, list: &Value) -> anyhow::Result<Self> {
        let plugins = list["plugins"].as_array().context("no plugins")?;
        let version = list["cniVersion"].as_str().context("no version")?;
        Ok(Self::new(self.node, version, plugins.iter().cloned()))
    }

    /// It as a list of plugins.
    #[must_use]
    pub fn list(&self) -> Value {
        json!({"cniVersion": self.version, "name": "pods", "plugins": self.plugins})
    }

    /// `ADD`: the result of the last plugin.
    ///
    /// # Errors
    /// [`Refused`], when a plugin refuses.
    pub fn add(&self, sandbox: Sandbox<'_>) -> anyhow::Result<Value> {
        Ok(self.add_timed(sandbox)?.0)
    }

    /// The same, with how long each plugin took.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn add_timed(&self, sandbox: Sandbox<'_>) -> anyhow::Result<(Value, Vec<Duration>)> {
        let (mut result, mut took) = (Value::Null, Vec::new());
        for plugin in &self.plugins {
            let before = Instant::now();
            let text = self.run("ADD", plugin, &result, sandbox)?;
            took.push(before.elapsed());
            result = serde_json::from_str(&text).context("a plugin printed no JSON")?;
        }
        Ok((result, took))
    }

    /// Another command, of all plugins, with the result of `ADD`; the last one first for `DEL`.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn ask(&self, command: &str, result: &Value, sandbox: Sandbox<'_>) -> anyhow::Result<()> {
        let mut plugins: Vec<&Value> = self.plugins.iter().collect();
        if command == "DEL" {
            plugins.reverse();
        }
        for plugin in plugins {
            self.run(command, plugin, result, sandbox)?;
        }
        Ok(())
    }

    fn run(
        &self,
        command: &str,
        plugin: &Value,
        previous: &Value,
        sandbox: Sandbox<'_>,
    ) -> anyhow::Result<String> {
        let mut config = plugin.clone();
        config["cniVersion"] = json!(self.version);
        config["name"] = json!("pods");
        if !previous.is_null() {
            config["prevResult"] = previous.clone();
        }
        let kind = plugin["type"].as_str().context("a plugin without type")?;
        let program = program(kind)?;
        // Where the other end of the pod's interface is made.
        let mut run = Place::here().netns(self.node).command(&program);
        run.env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", sandbox.id)
            .env("CNI_NETNS", sandbox.netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", sandbox.args)
            .env("CNI_PATH", program.parent().unwrap_or(&program))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        finish(run, &config.to_string())
    }
}

fn program(kind: &str) -> anyhow::Result<PathBuf> {
    match plugin(kind) {
        Some(program) => Ok(program),
        None if kind == "sidecar-agent" => programs::agent(),
        None => bail!("no CNI plugin {kind}"),
    }
}

/// Runs a plugin, with its configuration.
fn finish(mut run: Command, config: &str) -> anyhow::Result<String> {
    let mut child = run
        .spawn()
        .with_context(|| format!("cannot run `{}`", shown(&run)))?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    // One that does not read it says why itself.
    let _ = stdin.write_all(config.as_bytes());
    drop(stdin);
    let output = child.wait_with_output()?;
    let text = String::from_utf8(output.stdout)?;
    if output.status.success() {
        return Ok(text);
    }
    let error: Value = serde_json::from_str(&text).with_context(|| {
        let errors = String::from_utf8_lossy(&output.stderr);
        format!(
            "`{}` failed and printed no error: {text} {errors}",
            shown(&run)
        )
    })?;
    Err(Refused {
        code: error["code"].as_u64().unwrap_or_default(),
        message: error["msg"].as_str().unwrap_or_default().to_owned(),
    }
    .into())
}
