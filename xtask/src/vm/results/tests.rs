//! Records as machines write them.

use super::*;
use crate::vm::qemu::Timed;

fn run(records: Vec<Record>, failure: Option<&str>) -> Results {
    let seconds = (1..).map(Duration::from_secs);
    Results::of(&Run {
        records: seconds.zip(records).collect::<Vec<Timed>>(),
        failure: failure.map(str::to_owned),
    })
}

fn begun() -> Record {
    Record::Begun {
        suite: "kernel".to_owned(),
    }
}

fn line(line: &str) -> Record {
    let (suite, line) = ("kernel".to_owned(), line.to_owned());
    Record::Line { suite, line }
}

fn ended(failure: Option<&str>, skips: &[&str]) -> Record {
    Record::Ended {
        suite: "kernel".to_owned(),
        failure: failure.map(str::to_owned),
        skips: skips.iter().map(|&skip| skip.to_owned()).collect(),
    }
}

fn outcomes(results: &Results) -> Vec<(&str, &Outcome)> {
    let tests = results.tests.iter();
    tests
        .map(|test| (test.name.as_str(), &test.outcome))
        .collect()
}

const STARTED: &str = r#"{ "type": "test", "event": "started", "name": "c::hangs" }"#;
const OK: &str = r#"{ "type": "test", "name": "a::b", "event": "ok", "exec_time": 0.5 }"#;
const FAILED: &str = r#"{ "type": "test", "name": "a::bad", "event": "failed", "exec_time": 1.25, "stdout": "why\n" }"#;

#[test]
fn tests_of_a_machine_that_finished() {
    let results = run(
        vec![
            begun(),
            line(r#"{ "type": "suite", "event": "started", "test_count": 3 }"#),
            line(OK),
            line(FAILED),
            line(r#"{ "type": "test", "name": "a::lacks", "event": "ok", "exec_time": 0.1 }"#),
            ended(
                Some("exit status: 101"),
                &["SKIPPED kernel::a::lacks: MPTCP: none"],
            ),
            Record::Finished,
        ],
        None,
    );
    assert_eq!(
        outcomes(&results),
        [
            ("a::b", &Outcome::Passed),
            ("a::bad", &Outcome::Failed("why\n".to_owned())),
            ("a::lacks", &Outcome::Skipped("MPTCP: none".to_owned())),
        ]
    );
    assert_eq!(results.tests[1].time, Duration::from_millis(1250));
    assert_eq!(results.suites["kernel"], Duration::from_secs(5));
}

#[test]
fn tests_that_do_not_end_have_failed() {
    for (records, failure) in [
        (vec![begun(), line(OK), line(STARTED)], Some("it died")),
        (
            vec![
                begun(),
                line(OK),
                line(STARTED),
                ended(Some("it died"), &[]),
            ],
            None,
        ),
    ] {
        let results = run(records, failure);
        let lost = Outcome::Failed("it had not ended: it died".to_owned());
        let all = Outcome::Failed("it died".to_owned());
        let expected = [
            ("a::b", &Outcome::Passed),
            ("all", &all),
            ("c::hangs", &lost),
        ];
        assert_eq!(outcomes(&results), expected);
    }
}

#[test]
fn a_machine_that_does_not_boot_has_failed() {
    let results = run(vec![], Some("panic"));
    let failed = Outcome::Failed("panic".to_owned());
    assert_eq!(outcomes(&results), [("the machine", &failed)]);
}

#[test]
fn a_program_that_is_no_libtest_is_one_test() {
    let results = run(
        vec![begun(), line("3 passed, 0 failed"), ended(None, &[])],
        None,
    );
    assert_eq!(outcomes(&results), [("all", &Outcome::Passed)]);
    let results = run(
        vec![
            begun(),
            line("FAILED x"),
            ended(Some(": exit status: 1"), &[]),
        ],
        None,
    );
    let failed = Outcome::Failed("FAILED x: exit status: 1".to_owned());
    assert_eq!(outcomes(&results), [("all", &failed)]);
}
