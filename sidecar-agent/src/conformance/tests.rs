//! The cases of the project, and further ones.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::*;

fn project(directory: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(directory)
}

/// Every result of a directory, with the file's name in that of the case.
fn results(directory: &str) -> Vec<CaseResult> {
    let directory = project(directory);
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
            Outcome::Passed => None,
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
    assert_eq!(results.len(), 540);
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
        for text in ["- cases", "cases: [", "cases: []\n---\ncases: []\n"] {
            assert!(run(text).is_err(), "{file}: {text}");
        }
    }
}

#[test]
fn a_section_that_is_not_understood_fails_by_itself() {
    for (file, run) in FILES {
        let text = fs::read_to_string(project("../tests/cases").join(file)).unwrap();
        let good = run(&text).unwrap();
        let more = run(&format!("{text}\nmorecases: []\n")).unwrap();
        assert_eq!(more.len(), good.len() + 1, "{file}");
        let failed: Vec<_> = more
            .iter()
            .filter(|result| result.outcome != Outcome::Passed)
            .map(|result| result.name.as_str())
            .collect();
        assert_eq!(failed, ["morecases"], "{file}");
    }
    for (file, text) in [
        ("validation-cases.yaml", "webhook: 1"),
        ("capture-cases.yaml", "bindToPort: {}"),
        ("capture-cases.yaml", "virtualListeners: {case: []}"),
        ("cgroup-cases.yaml", "cases: 1"),
        ("selection-cases.yaml", "analyzer: {sidecars: 1}"),
        ("iptables-cases.yaml", "cases: 1"),
        (
            "iptables-cases.yaml",
            "optionSets: {a: {redirectDns: true}}",
        ),
        (
            "iptables-cases.yaml",
            "optionSets: {a: {excludeOutboundIPRanges: '*'}}",
        ),
        ("iptables-cases.yaml", "optionSets: {a: {proxyPort: '0'}}"),
        ("iptables-cases.yaml", "optionSets: []"),
    ] {
        let (_, run) = FILES.iter().find(|(known, _)| *known == file).unwrap();
        let results = run(text).unwrap();
        let [
            CaseResult {
                outcome: Outcome::Failed(_),
                ..
            },
        ] = results.as_slice()
        else {
            panic!("{file}: {text}: {results:?}")
        };
    }
}
