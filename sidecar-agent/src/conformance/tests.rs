//! The cases of the project, and further ones.

use std::{fs, path::Path};

use super::*;

/// Every result of a directory, with the file's name in that of the case.
fn results(directory: &str) -> Vec<CaseResult> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let mut all = Vec::new();
    for (file, run) in FILES {
        let text = fs::read_to_string(directory.join(file)).unwrap();
        let mut results = run(&text).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(!results.is_empty(), "{file} has no case");
        for result in &mut results {
            result.name.insert_str(0, &format!("{file}: "));
        }
        all.extend(results);
    }
    all
}

fn none_failed(results: &[CaseResult]) {
    let failed: Vec<String> = results
        .iter()
        .filter_map(|CaseResult { name, outcome }| match outcome {
            Outcome::Failed(why) => Some(format!("{name}: {why}\n")),
            Outcome::Passed | Outcome::NotRun(_) => None,
        })
        .collect();
    assert!(
        failed.is_empty(),
        "{} failed:\n{}",
        failed.len(),
        failed.concat()
    );
}

#[test]
fn cases() {
    let results = results("../tests/cases");
    none_failed(&results);
    let not_run = results
        .iter()
        .filter(|result| matches!(result.outcome, Outcome::NotRun(_)))
        .count();
    assert_eq!((results.len() - not_run, not_run), (381, 7));
}

#[test]
fn further_cases() {
    none_failed(&results("tests/conformance/right"));
}

/// What is expected wrongly, or not understood, fails: each case is really looked at.
#[test]
fn wrong_cases() {
    for CaseResult { name, outcome } in results("tests/conformance/wrong") {
        assert!(matches!(outcome, Outcome::Failed(_)), "{name}: {outcome:?}");
    }
}

#[test]
fn what_is_no_file_of_cases() {
    for (file, run) in FILES {
        for text in [
            "- cases",
            "cases: [",
            "morecases: []",
            "webhook: 1\ncases: 1",
        ] {
            assert!(run(text).is_err(), "{file}: {text}");
        }
    }
}
