//! What is told of the tests.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use comfy_table::{Table, presets};

use super::{
    results::{Outcome, Results},
    suites::SUITES,
};
use crate::test::Counts;

/// Results by the name of the machine.
pub type All = BTreeMap<(usize, String), Results>;

/// Counts of all machines.
pub fn counts(all: &All) -> Counts {
    let mut counts = Counts::default();
    for test in all.values().flat_map(|results| &results.tests) {
        counts.add(&test.outcome);
    }
    counts
}

impl Counts {
    fn add(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Passed => self.passed += 1,
            Outcome::Failed(_) => self.failed += 1,
            Outcome::Skipped(_) => self.skipped += 1,
        }
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// A row for each machine, a column for each suite.
pub fn suites(all: &All) -> String {
    let mut names: Vec<&str> = Vec::new();
    for test in all.values().flat_map(|results| &results.tests) {
        if !names.contains(&test.suite.as_str()) {
            names.push(&test.suite);
        }
    }
    // In the order they ran.
    names.sort_by_key(|name| SUITES.iter().position(|suite| suite.name == *name));
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["kernel", "boot"].iter().chain(&names).chain(&["total"]));
    for ((_, machine), results) in all {
        let mut row = vec![
            machine.clone(),
            results.boot.map_or_else(|| "FAILED".to_owned(), seconds),
        ];
        row.extend(names.iter().map(|suite| cell(results, suite)));
        row.push(seconds(results.total));
        table.add_row(row);
    }
    table.to_string()
}

fn cell(results: &Results, suite: &str) -> String {
    let mut counts = Counts::default();
    for test in results.tests.iter().filter(|test| test.suite == suite) {
        counts.add(&test.outcome);
    }
    let parts = [
        (counts.passed, "passed"),
        (counts.failed, "FAILED"),
        (counts.skipped, "skipped"),
    ];
    let mut lines: Vec<String> = parts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    lines.extend(results.suites.get(suite).copied().map(seconds));
    lines.join("\n")
}

/// A row for each test, a column for each machine. With `interesting` only of tests that some
/// machine did not pass.
pub fn tests(all: &All, interesting: bool) -> String {
    let mut rows: BTreeMap<(&str, &str), BTreeMap<usize, String>> = BTreeMap::new();
    let mut failed: Vec<(&str, &str)> = Vec::new();
    for ((number, _), results) in all {
        for test in &results.tests {
            let name = (test.suite.as_str(), test.name.as_str());
            let word = match &test.outcome {
                Outcome::Passed => "",
                Outcome::Failed(_) => "FAILED ",
                Outcome::Skipped(_) => "skipped ",
            };
            if matches!(test.outcome, Outcome::Failed(_)) {
                failed.push(name);
            }
            let text = format!("{word}{}", seconds(test.time));
            rows.entry(name).or_default().insert(*number, text);
        }
    }
    if interesting {
        rows.retain(|name, _| failed.contains(name));
    }
    if rows.is_empty() {
        return String::new();
    }
    let machines: Vec<&(usize, String)> = all.keys().collect();
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    let labels = machines.iter().map(|(_, label)| label.as_str());
    table.set_header(std::iter::once("test").chain(labels));
    for ((suite, test), cells) in rows {
        let cells = machines
            .iter()
            .map(|(number, _)| cells.get(number).cloned().unwrap_or_default());
        table.add_row(std::iter::once(format!("{suite}::{test}")).chain(cells));
    }
    table.to_string()
}

/// What failed in a machine and why, a line each; `whole` has all that the tests printed.
pub fn failures(results: &Results, whole: bool) -> String {
    let mut text = String::new();
    for test in &results.tests {
        let Outcome::Failed(why) = &test.outcome else {
            continue;
        };
        let shown = if whole { why.as_str() } else { reason(why) };
        let break_ = if whole { "\n" } else { " " };
        let _ = writeln!(text, "FAILED {}::{}:{break_}{shown}", test.suite, test.name);
    }
    text
}

/// The line that says what went wrong: the one after that which says where, for a panic; the
/// error that a test returned, else.
fn reason(output: &str) -> &str {
    let mut lines = output
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty());
    let first = lines.clone().next().unwrap_or("it says nothing");
    let error = lines.clone().find(|line| line.starts_with("Error: "));
    let panic = lines
        .find(|line| line.contains("panicked at"))
        .and_then(|_| lines.next());
    error.or(panic).unwrap_or(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::results::Test;

    fn all() -> All {
        let test = |name: &str, outcome| Test {
            suite: "kernel".to_owned(),
            name: name.to_owned(),
            outcome,
            time: Duration::from_millis(1500),
        };
        let good = Results {
            tests: vec![test("a", Outcome::Passed), test("b", Outcome::Passed)],
            boot: Some(Duration::from_secs(2)),
            ..Results::default()
        };
        let bad = Results {
            tests: vec![
                test("a", Outcome::Skipped("no".to_owned())),
                test(
                    "b",
                    Outcome::Failed("thread panicked at x:\nwhy\n".to_owned()),
                ),
            ],
            ..Results::default()
        };
        BTreeMap::from([((0, "6.1".to_owned()), good), ((1, "5.10".to_owned()), bad)])
    }

    #[test]
    fn tables_have_a_place_for_each_result() {
        let all = all();
        let suites = suites(&all);
        assert!(suites.contains("2 passed"), "{suites}");
        assert!(suites.contains("1 FAILED"), "{suites}");
        let every = tests(&all, false);
        assert!(
            every.contains("kernel::a") && every.contains("skipped 1.5 s"),
            "{every}"
        );
        let failed = tests(&all, true);
        assert!(
            !failed.contains("kernel::a") && failed.contains("FAILED 1.5 s"),
            "{failed}"
        );
        let counts = counts(&all);
        assert_eq!((counts.passed, counts.failed, counts.skipped), (2, 1, 1));
    }

    #[test]
    fn a_failure_says_why() {
        let all = all();
        let bad = &all[&(1, "5.10".to_owned())];
        assert_eq!(failures(bad, false), "FAILED kernel::b: why\n");
        assert_eq!(reason("note\nError: a\n  Caused by"), "Error: a");
        assert_eq!(reason(""), "it says nothing");
    }
}
