//! What a rendering is made of.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use sidecar_tests::{
    command,
    manifests::{self, KUBERNETES},
};

/// Whether there is a helm to ask.
pub fn has_helm() -> bool {
    manifests::tool("helm").is_ok_and(|path| path.exists())
}

/// Skips the running test without helm.
macro_rules! require_helm {
    () => {
        if !$crate::documents::has_helm() {
            sidecar_tests::skip!("helm: `cargo xtask setup` installs it");
        }
    };
}
pub(crate) use require_helm;

/// All documents of a text.
pub fn documents(text: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).context("the rendering")?;
    Ok(documents.into_iter().filter(|of| !of.is_null()).collect())
}

/// What the chart makes of such values, on the command line as `--set` has it.
pub fn rendered(set: &[&str]) -> Result<Vec<Value>> {
    let mut helm = manifests::template(KUBERNETES)?;
    for value in set {
        helm.args(["--set", value]);
    }
    documents(&command::output(&mut helm)?)
}

/// The one of a kind.
pub fn only<'a>(documents: &'a [Value], kind: &str) -> Result<&'a Value> {
    let mut found = documents.iter().filter(|of| of["kind"] == kind);
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        _ => bail!("not one {kind}"),
    }
}

/// The pod of the `DaemonSet`.
pub fn pod(documents: &[Value]) -> Result<&Value> {
    Ok(&only(documents, "DaemonSet")?["spec"]["template"]["spec"])
}

/// Containers of a pod, also those that run before.
pub fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers"]
        .into_iter()
        .filter_map(|kind| pod[kind].as_array())
        .flatten()
}

/// A list of texts.
pub fn texts(value: &Value) -> Vec<&str> {
    let items = value.as_array().into_iter().flatten();
    items.filter_map(Value::as_str).collect()
}

/// A file of the chart.
pub fn chart_file(name: &str) -> Result<String> {
    let path = manifests::chart().join(Path::new(name));
    std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}
