//! `cargo xtask test`.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader},
    iter::Sum,
    path::Path,
    process::Stdio,
    time::Duration,
};

use anyhow::Context as _;

use crate::{
    cargo, cross,
    fuzz::{self, Fuzzer},
    setup,
    suites::{Run, SUITES, Suite, Tests},
    vm,
};

/// Names a file that a test which cannot run here appends a line to (see `sidecar_tests::skip`);
/// `cargo test` itself knows only tests that are ignored from the outset.
const SKIPS_ENV: &str = "SIDECAR_TEST_SKIPS";

/// Tells the harness that the programs it runs are built (see `sidecar_tests::programs`).
pub const PREBUILT_ENV: &str = "SIDECAR_TEST_PREBUILT";

/// How long each fuzz target runs; `cargo xtask fuzz` takes longer.
const FUZZ_TIME: Duration = Duration::from_secs(10);
/// The same each time: what fails, fails again, as far as the same is reached in that time.
const FUZZ_SEED: u32 = 1;

#[derive(clap::Args)]
pub struct Args {
    /// Run this suite only (repeatable)
    #[arg(long = "suite", value_name = "NAME", value_parser = names())]
    suites: Vec<String>,
    /// List the suites and run none
    #[arg(long)]
    list: bool,
    /// Run only the tests whose name contains this
    filter: Option<String>,
}

fn names() -> clap::builder::PossibleValuesParser {
    SUITES
        .iter()
        .map(|suite| suite.name)
        .collect::<Vec<_>>()
        .into()
}

/// Runs the suites and prints the sum of their counts as the last line.
///
/// Returns whether at least one test ran and none failed.
pub fn run(args: &Args) -> anyhow::Result<bool> {
    if args.list {
        for Suite { name, about, .. } in SUITES {
            println!("{name:<8} {about}");
        }
        return Ok(true);
    }
    setup::ensure()?;
    let wanted = |suite: &&Suite| {
        args.suites.is_empty() || args.suites.iter().any(|name| name == suite.name)
    };
    let suites: Vec<&Suite> = SUITES.iter().filter(wanted).collect();
    let programs: BTreeSet<&str> = suites
        .iter()
        .filter_map(|suite| match &suite.run {
            Run::Tests(tests) => Some(tests.programs),
            Run::Fuzz | Run::Cross | Run::Vm => None,
        })
        .flatten()
        .copied()
        .collect();
    for package in programs {
        cargo::run(&mut cargo::cargo(&["build", "--bins", "-p", package]))?;
    }
    let results = suites
        .into_iter()
        .map(|suite| {
            println!("\n== {}: {}", suite.name, suite.about);
            let filter = args.filter.as_deref();
            let counts = match &suite.run {
                Run::Tests(tests) => run_tests(suite.name, tests, filter),
                Run::Fuzz => run_fuzz(filter),
                Run::Cross => Ok(run_cross(filter)),
                Run::Vm => run_vm(filter),
            }?;
            println!("== {}: {}", suite.name, counts.line());
            Ok(counts)
        })
        .collect::<anyhow::Result<Vec<Counts>>>()?;
    let total: Counts = results.into_iter().sum();
    if total.passed + total.failed == 0 {
        println!("no test ran");
    }
    println!("\n{}", total.line());
    Ok(total.failed == 0 && total.passed > 0)
}

fn run_fuzz(filter: Option<&str>) -> anyhow::Result<Counts> {
    let wanted = |target: &&fuzz::Target| filter.is_none_or(|text| target.name.contains(text));
    let targets: Vec<_> = fuzz::TARGETS.iter().filter(wanted).collect();
    let mut counts = Counts::default();
    if targets.is_empty() {
        return Ok(counts);
    }
    let fuzzer = Fuzzer::quick()?;
    for target in targets {
        if fuzzer.run(target, FUZZ_TIME, FUZZ_SEED)? {
            counts.passed += 1;
        } else {
            counts.failed += 1;
        }
    }
    Ok(counts)
}

/// Counts as skipped where what it needs cannot be had.
fn run_cross(filter: Option<&str>) -> Counts {
    let mut counts = Counts::default();
    let checks: Vec<_> = cross::wanted(filter).collect();
    if checks.is_empty() {
        return counts;
    }
    if let Err(error) = setup::ensure_cross() {
        println!("SKIPPED cross: {error:#}");
        counts.skipped = checks.len();
        return counts;
    }
    for check in checks {
        if check.run() {
            counts.passed += 1;
        } else {
            counts.failed += 1;
        }
    }
    counts
}

/// Counts as one test that is skipped where machines or their kernels cannot be had.
fn run_vm(filter: Option<&str>) -> anyhow::Result<Counts> {
    let args = vm::Args::small(filter)?;
    match vm::prepare(&args) {
        Ok(ready) => vm::counted(&args, &ready),
        Err(error) => {
            println!("SKIPPED vm: {error:#}");
            Ok(Counts {
                skipped: 1,
                ..Counts::default()
            })
        }
    }
}

fn run_tests(suite: &str, tests: &Tests, filter: Option<&str>) -> anyhow::Result<Counts> {
    if let Some(ensure) = tests.ensure
        && let Err(error) = ensure()
    {
        println!("{suite}: tests will be skipped: {error:#}");
    }
    let skips = tempfile::NamedTempFile::new().context("cannot create a file for skipped tests")?;
    let mut command = cargo::cargo(&["test", "--no-fail-fast"]);
    command.args(tests.targets).arg("--").args(filter);
    if let Some(threads) = tests.threads {
        command.arg(format!("--test-threads={threads}"));
    }
    command
        .env(SKIPS_ENV, skips.path())
        .env(PREBUILT_ENV, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot run {}", cargo::shown(&command)))?;
    let stdout = child.stdout.take().context("cargo has no stdout")?;
    let mut counts = Counts::default();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.context("cannot read what the tests print")?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        counts.add_line(&line);
    }
    let status = child.wait().context("cannot wait for cargo")?;
    if !status.success() && counts.failed == 0 {
        println!("{suite}: a test program did not compile, or died ({status})");
        counts.failed = 1;
    }
    counts.take_skips(&read_skips(skips.path())?);
    Ok(counts)
}

fn read_skips(path: &Path) -> anyhow::Result<Vec<String>> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read the skipped tests from {}", path.display()))?;
    let skips: Vec<String> = text.lines().map(str::to_owned).collect();
    for skip in &skips {
        println!("{skip}");
    }
    Ok(skips)
}

/// How many tests there were, by what became of them.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Counts {
    /// Tests that passed.
    pub passed: usize,
    /// Tests that failed.
    pub failed: usize,
    /// Tests that did not run.
    pub skipped: usize,
}

impl Counts {
    /// Adds the counts of a line like `test result: ok. 3 passed; 0 failed; 1 ignored; ...`.
    fn add_line(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else {
            return;
        };
        let words: Vec<&str> = result.split_whitespace().collect();
        for pair in words.windows(2) {
            let [number, kind] = pair else { continue };
            let Ok(number) = number.parse::<usize>() else {
                continue;
            };
            match *kind {
                "passed;" => self.passed += number,
                "failed;" => self.failed += number,
                "ignored;" => self.skipped += number,
                _ => {}
            }
        }
    }

    /// A test that skipped itself returned normally, so it was counted as passed.
    fn take_skips(&mut self, skips: &[String]) {
        let skips = skips.len().min(self.passed);
        self.passed -= skips;
        self.skipped += skips;
    }

    /// How it is told.
    pub fn line(self) -> String {
        format!(
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

impl Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::default(), |a, b| Self {
            passed: a.passed + b.passed,
            failed: a.failed + b.failed,
            skipped: a.skipped + b.skipped,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_from_what_libtest_prints() {
        let mut counts = Counts::default();
        for line in [
            "running 6 tests",
            "test result: FAILED. 3 passed; 2 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.02s",
            "test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s",
            "test prints::5_passed ... ok",
        ] {
            counts.add_line(line);
        }
        assert_eq!(
            counts,
            Counts {
                passed: 7,
                failed: 2,
                skipped: 1
            }
        );
    }

    #[test]
    fn a_test_that_skipped_itself_did_not_pass() {
        let mut counts = Counts {
            passed: 7,
            failed: 2,
            skipped: 1,
        };
        counts.take_skips(&[
            "SKIPPED a: root".to_owned(),
            "SKIPPED b: cgroup2".to_owned(),
        ]);
        assert_eq!(
            counts,
            Counts {
                passed: 5,
                failed: 2,
                skipped: 3
            }
        );
        assert_eq!(counts.line(), "5 passed, 2 failed, 3 skipped");
    }
}
