//! `cgroup-cases.yaml`: pod UID and container id from the cgroup paths of a process.

use serde::{Deserialize, de::IgnoredAny};

use crate::source::pod_cgroup;

use super::{CaseResult, Malformed, expect};

/// Runs the file.
///
/// # Errors
/// When the text is no such file.
pub fn run(text: &str) -> Result<Vec<CaseResult>, Malformed> {
    super::sections(
        text,
        &[("cases", |name, cases| super::run(name, cases, check))],
    )
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    #[serde(default, rename = "name")]
    _name: IgnoredAny,
    #[serde(default)]
    paths: Vec<String>,
    /// Absent as well as empty: there is none.
    #[serde(rename = "podUID")]
    pod_uid: Option<String>,
    #[serde(rename = "containerID")]
    container_id: Option<String>,
    /// A gist.
    error: Option<String>,
}

fn check(case: &Case) -> Result<(), String> {
    let got = pod_cgroup::of_process(case.paths.iter().map(String::as_str));
    let got = match (got, &case.error) {
        (Err(_), Some(_)) => return Ok(()),
        (Err(error), None) => return Err(format!("expected no error, got: {error}")),
        (Ok(got), Some(error)) => return Err(format!("expected error {error:?}, got {got:?}")),
        (Ok(got), None) => got,
    };
    let (pod_uid, container_id) = match got {
        Some(found) => (found.pod_uid, Some(found.container_id)),
        None => (None, None),
    };
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    expect("podUID", &text(&case.pod_uid), &text(&pod_uid))?;
    expect(
        "containerID",
        &text(&case.container_id),
        &text(&container_id),
    )
}
