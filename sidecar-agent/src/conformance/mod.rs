//! Runs files of test vectors (`tests/cases`) against resolve.
//!
//! Each runner takes the text of a file and returns one result for each case. A field that a
//! runner does not understand is a failure: a case that is only half looked at would pass for
//! the wrong reason.

pub mod capture;
pub mod selection;
pub mod visibility;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::model::{Object, ObjectMeta, Origin};

/// What came of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaseResult {
    /// The case: its section and its name or position.
    pub name: String,
    /// `Err`: what was expected, and what came.
    pub outcome: Result<(), String>,
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

/// Runs every case of a section.
fn run<T: DeserializeOwned>(
    section: &str,
    cases: &[Value],
    check: impl Fn(&T) -> Result<(), String>,
) -> Vec<CaseResult> {
    let run = |(index, case): (usize, &Value)| {
        let name = match case.get("name").and_then(Value::as_str) {
            Some(name) => format!("{section}: {name}"),
            None => format!("{section}[{index}]"),
        };
        let outcome = T::deserialize(case)
            .map_err(|error| format!("the case is not understood: {error}"))
            .and_then(|case: T| check(&case));
        CaseResult { name, outcome }
    };
    cases.iter().enumerate().map(run).collect()
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
fn object<T>(namespace: &str, name: &str, created: i64, spec: T) -> Object<T> {
    Object {
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_pass(results: Result<Vec<CaseResult>, Malformed>, at_least: usize) {
        let results = results.unwrap();
        assert!(results.len() >= at_least, "only {} cases", results.len());
        let failed: Vec<_> = results
            .iter()
            .filter(|result| result.outcome.is_err())
            .collect();
        assert!(
            failed.is_empty(),
            "{} of {}: {failed:#?}",
            failed.len(),
            results.len()
        );
    }

    #[test]
    fn selection_cases() {
        let text = include_str!("../../../tests/cases/selection-cases.yaml");
        all_pass(selection::run(text), 35);
    }

    #[test]
    fn visibility_cases() {
        let text = include_str!("../../../tests/cases/egress-visibility-cases.yaml");
        all_pass(visibility::run(text), 87);
    }

    #[test]
    fn capture_cases() {
        let text = include_str!("../../../tests/cases/capture-cases.yaml");
        all_pass(capture::run(text), 60);
    }

    #[test]
    fn a_field_that_is_not_understood_is_a_failure() {
        let text = "
cases:
- name: known
  rootNamespace: istio-system
  workload: {namespace: a, type: sidecar, labels: {}}
  sidecars: []
  expect: {applied: builtin-default, effectiveNamespace: a}
- name: unknown
  rootNamespace: istio-system
  workload: {namespace: a, type: sidecar, labels: {}, sidecarVersion: 1}
  sidecars: []
  expect: {applied: builtin-default, effectiveNamespace: a}
- name: wrong
  rootNamespace: istio-system
  workload: {namespace: a, type: sidecar, labels: {}}
  sidecars: []
  expect: {applied: a/x, effectiveNamespace: a}
";
        let outcomes: Vec<_> = selection::run(text)
            .unwrap()
            .into_iter()
            .map(|r| r.outcome.is_ok())
            .collect();
        assert_eq!(outcomes, [true, false, false]);
        assert!(selection::run("cases: []\nmore: 1").is_err());
    }
}
