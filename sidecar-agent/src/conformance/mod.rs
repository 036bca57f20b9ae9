//! Runs files of test vectors (`tests/cases`) against the rules.
//!
//! Each runner takes the text of a file and returns one result for each case. A field or a section
//! that a runner does not understand is a failure: a case that is only half looked at would pass
//! for the wrong reason.

mod analyzer;
pub mod capture;
pub mod cgroup;
pub mod iptables;
pub mod selection;
pub mod validation;
pub mod visibility;

use std::sync::Arc;

use serde::{
    Deserialize,
    de::{DeserializeOwned, IgnoredAny},
};
use serde_json::{Map, Value};

use crate::model::{Object, ObjectMeta, Origin};

/// Runs the text of a file.
pub type Runner = fn(&str) -> Result<Vec<CaseResult>, Malformed>;

/// The files there are runners for, by name.
pub const FILES: [(&str, Runner); 6] = [
    ("capture-cases.yaml", capture::run),
    ("cgroup-cases.yaml", cgroup::run),
    ("egress-visibility-cases.yaml", visibility::run),
    ("iptables-cases.yaml", iptables::run),
    ("selection-cases.yaml", selection::run),
    ("validation-cases.yaml", validation::run),
];

/// What came of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaseResult {
    /// The case: its section and its name or position.
    pub name: String,
    /// What came of it.
    pub outcome: Outcome,
}

/// Whether the rules answer as a case expects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// They do.
    Passed,
    /// They do not, or the case is not understood: what was expected, and what came.
    Failed(String),
}

impl From<Result<(), String>> for Outcome {
    fn from(result: Result<(), String>) -> Self {
        result.map_or_else(Self::Failed, |()| Self::Passed)
    }
}

/// A file that is no file of cases.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(String);

/// Reads the sections of a file.
fn read<T: DeserializeOwned>(text: &str) -> Result<T, Malformed> {
    // Without this a plain `y` is a boolean.
    let options = serde_saphyr::options! { strict_booleans: true };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| Malformed(error.to_string()))
}

/// Runs a section of a file; told its name.
type Section = fn(&str, &Value) -> Vec<CaseResult>;

/// Sections of prose.
const PROSE: [&str; 1] = ["rules"];

/// Runs the sections of a file, each on its own: one that is not understood fails by itself.
fn sections(text: &str, known: &[(&str, Section)]) -> Result<Vec<CaseResult>, Malformed> {
    let file: Map<String, Value> = read(text)?;
    let written = file
        .iter()
        .filter(|(name, _)| !PROSE.contains(&name.as_str()));
    Ok(written
        .flat_map(
            |(name, section)| match known.iter().find(|(known, _)| name == known) {
                Some((_, run)) => run(name, section),
                None => vec![failed(name, "the section is not understood")],
            },
        )
        .collect())
}

/// A section that could not be run.
fn failed(section: &str, why: impl Into<String>) -> CaseResult {
    CaseResult {
        name: section.to_owned(),
        outcome: Outcome::Failed(why.into()),
    }
}

/// Runs every case of a section.
fn run<T: DeserializeOwned>(
    section: &str,
    cases: &Value,
    check: impl Fn(&T) -> Result<(), String>,
) -> Vec<CaseResult> {
    let cases = match cases {
        Value::Array(cases) => cases.as_slice(),
        Value::Null => &[],
        other => return vec![failed(section, format!("it is no list of cases: {other}"))],
    };
    let run = |(index, case): (usize, &Value)| {
        let mut stripped = case.clone();
        if let Some(fields) = stripped.as_object_mut() {
            // Where the case comes from; any may say it.
            fields.remove("source");
        }
        let outcome = T::deserialize(stripped)
            .map_err(|error| format!("the case is not understood: {error}"))
            .and_then(|case: T| check(&case));
        CaseResult {
            name: name(section, index, named(case)),
            outcome: outcome.into(),
        }
    };
    cases.iter().enumerate().map(run).collect()
}

/// Runs a section that says of all its cases where they come from.
fn run_sourced<T: DeserializeOwned>(
    section: &str,
    sourced: &Value,
    check: impl Fn(&T) -> Result<(), String>,
) -> Vec<CaseResult> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sourced {
        #[serde(default, rename = "source")]
        _source: IgnoredAny,
        #[serde(default)]
        cases: Value,
    }
    match Sourced::deserialize(sourced) {
        Ok(Sourced { cases, .. }) => run(section, &cases, check),
        Err(error) => vec![failed(section, format!("it is not understood: {error}"))],
    }
}

/// The name of a case, if it has one.
fn named(case: &Value) -> Option<&str> {
    let name = case.get("name").or_else(|| case.get("id"));
    name.and_then(Value::as_str)
}

/// What a case is called: its section, its position, and its name if it has one.
fn name(section: &str, index: usize, name: Option<&str>) -> String {
    match name {
        Some(name) => format!("{section}[{index}] {name:?}"),
        None => format!("{section}[{index}]"),
    }
}

/// Reads a field that is null where it is absent.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Compares what came with what was expected.
fn expect<T: PartialEq + std::fmt::Debug>(what: &str, expected: &T, got: &T) -> Result<(), String> {
    if expected == got {
        Ok(())
    } else {
        Err(format!("{what}: expected {expected:?}, got {got:?}"))
    }
}

/// A resource as the cases have it: without a place in a file.
fn object<T>(namespace: &str, name: &str, created: i64, spec: T) -> Arc<Object<T>> {
    Arc::new(Object {
        meta: ObjectMeta {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            created,
            ..ObjectMeta::default()
        },
        origin: Origin {
            file: "case".into(),
            line: 1,
        },
        spec,
    })
}

#[cfg(test)]
mod tests;
