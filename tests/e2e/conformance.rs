//! The runner of the test vectors: what it says, and how it ends.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use tempfile::TempDir;

const GOOD: &str = "cases:\n- {paths: [/user.slice], podUID: '', containerID: ''}\n";

fn run(args: &[&Path]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_conformance"))
        .args(args)
        .output()
        .unwrap()
}

fn directory(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(directory.path().join(name), text).unwrap();
    }
    directory
}

fn check(output: &Output, code: i32, stdout: &[&str], stderr: &[&str]) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{out}{err}");
    for (seen, wanted) in [(out, stdout), (err, stderr)] {
        for wanted in wanted {
            assert!(seen.contains(wanted), "{wanted:?} is not in {seen:?}");
        }
    }
}

#[test]
fn arguments_that_cannot_be_used() {
    check(&run(&[]), 2, &[], &["<CASES>"]);
    let empty = directory(&[("README.md", "")]);
    check(
        &run(&[empty.path()]),
        2,
        &[],
        &["no file of cases", "cgroup-cases.yaml"],
    );
    let nowhere = empty.path().join("nowhere");
    check(
        &run(&[&nowhere]),
        2,
        &[],
        &["cannot list", "nowhere", "No such file"],
    );
}

#[test]
fn what_is_there_is_run_and_what_is_not_is_told() {
    let some = directory(&[
        ("cgroup-cases.yaml", GOOD),
        ("other-cases.yaml", "cases: []"),
        ("README.md", ""),
    ]);
    let output = run(&[some.path()]);
    let told = [
        "no runner has this name: other-cases.yaml",
        "not there: selection-cases.yaml",
    ];
    check(&output, 0, &["1 passed, 0 failed\n"], &told);
    assert!(!String::from_utf8_lossy(&output.stderr).contains("README"));
}

#[test]
fn failures() {
    let wrong = GOOD.replace("podUID: ''", "podUID: other");
    for (text, passed, told) in [
        (wrong.as_str(), 0, "cases[0]: podUID: expected"),
        (
            "cases: [{paths: [], also: 1}]",
            0,
            "cases[0]: the case is not understood",
        ),
        ("cases: []", 0, "cgroup-cases.yaml: has no case"),
        ("cases: [", 0, "cgroup-cases.yaml: is no file of cases"),
        (
            &format!("{GOOD}more: []"),
            1,
            "more: the section is not understood",
        ),
    ] {
        let some = directory(&[("cgroup-cases.yaml", text)]);
        let last = format!("{passed} passed, 1 failed\n");
        check(&run(&[some.path()]), 1, &["FAILED", told, &last], &[]);
    }
}
