//! The log.

use anyhow::{Context as _, ensure};
use serde_json::Value;
use sidecar_tests::require_root;

use crate::fixture::registry_only;

#[test]
fn json_log_lines_are_objects_with_fields() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.start_agent_with(|agent| agent.env("SIDECAR_AGENT_LOG_FORMAT", "json"))?;
    lab.wait_captured()?;
    let line = lab.agent()?.wait_log("plan in force")?;
    let entry: Value = serde_json::from_str(&line).context(line)?;
    ensure!(entry["level"] == "INFO", "{entry}");
    ensure!(
        entry["fields"]["workload"] == "prod-us1/productpage",
        "{entry}"
    );
    ensure!(entry["timestamp"].is_string(), "{entry}");
    for line in lab.agent()?.logs() {
        let entry: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
        ensure!(entry["fields"]["message"].is_string(), "{line}");
    }
    Ok(())
}
