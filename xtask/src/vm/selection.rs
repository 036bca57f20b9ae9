//! Which tests run in virtual machines.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use sidecar_vm_init::{Job, PATH, Suite};

use super::build::Built;
use crate::cargo;

/// A suite that can run there.
pub struct VmSuite {
    /// Its name: that of the test target, unless it is a program.
    pub name: &'static str,
    /// Whether it is a program of its own, not libtest's.
    program: Option<&'static [&'static str]>,
    /// Parts of names of tests that do not run unless asked for, and why.
    pub left_out: &'static [(&'static str, &'static str)],
}

/// All of them, in the order they run.
pub const SUITES: &[VmSuite] = &[
    VmSuite {
        name: "kernel",
        program: None,
        left_out: &[],
    },
    VmSuite {
        name: "e2e",
        program: None,
        left_out: &[],
    },
    VmSuite {
        name: "parity",
        program: None,
        left_out: &[],
    },
    VmSuite {
        name: "conformance",
        program: Some(&["--live"]),
        left_out: &[],
    },
];

/// A suite and the filters of its tests.
pub type Chosen = (&'static VmSuite, Vec<String>);

/// The suites that filters want, each with its own: `SUITE::TEST` is of one, other texts of all
/// that have tests. No filter wants all.
pub fn wanted(filters: &[String]) -> Vec<Chosen> {
    let of = |suite: &VmSuite| -> Option<Vec<String>> {
        let own: Vec<String> = filters
            .iter()
            .filter_map(|filter| {
                let (first, rest) = filter.split_once("::").unwrap_or((filter, ""));
                if first == suite.name {
                    return Some(rest.to_owned());
                }
                let other = SUITES.iter().any(|suite| first == suite.name);
                (!other && suite.program.is_none()).then(|| filter.clone())
            })
            .collect();
        let all = own.iter().any(String::is_empty);
        match (filters.is_empty() || all, own.is_empty()) {
            (true, _) => Some(Vec::new()),
            (false, true) => None,
            (false, false) => Some(own),
        }
    };
    SUITES
        .iter()
        .filter_map(|suite| Some((suite, of(suite)?)))
        .collect()
}

/// The targets of `cargo test` that have the tests of these suites.
pub fn targets(suites: &[Chosen]) -> Vec<&'static str> {
    suites
        .iter()
        .filter(|(suite, _)| suite.program.is_none())
        .map(|(suite, _)| suite.name)
        .collect()
}

/// The same without the suites that have no test of such a name: no machine is started for them.
///
/// # Errors
/// When a program was not built, or does not tell its tests.
pub fn with_tests(suites: Vec<Chosen>, built: &Built) -> anyhow::Result<Vec<Chosen>> {
    let mut kept = Vec::new();
    for (suite, filters) in suites {
        if suite.program.is_some() || has_tests(built.path(suite.name)?, &filters)? {
            kept.push((suite, filters));
        }
    }
    Ok(kept)
}

fn has_tests(program: &Path, filters: &[String]) -> anyhow::Result<bool> {
    let mut command = Command::new(program);
    command.args(["--list", "--format", "terse"]).args(filters);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", cargo::shown(&command)))?;
    ensure!(
        output.status.success(),
        "`{}` failed with {}",
        cargo::shown(&command),
        output.status
    );
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .any(|line| line.ends_with(": test")))
}

/// What a machine is to do. `all` runs what is left out, too.
///
/// # Errors
/// When a program was not built.
pub fn job(suites: &[Chosen], built: &Built, threads: usize, all: bool) -> anyhow::Result<Job> {
    let cases = cargo::workspace().join("tests/cases");
    let suites = suites
        .iter()
        .map(|(suite, filters)| {
            Ok(Suite {
                name: suite.name.to_owned(),
                program: built.path(suite.name)?.to_owned(),
                args: args(suite, filters, threads, all, &cases),
            })
        })
        .collect::<anyhow::Result<_>>()?;
    let env = [
        ("PATH", PATH),
        ("HOME", "/root"),
        ("LC_ALL", "C.UTF-8"),
        ("SIDECAR_TEST_PREBUILT", "1"),
        // libtest's format for programs is not stable.
        ("RUSTC_BOOTSTRAP", "1"),
    ];
    let env = env.map(|(key, value)| (key.to_owned(), value.to_owned()));
    Ok(Job {
        env: env.to_vec(),
        suites,
    })
}

fn args(
    suite: &VmSuite,
    filters: &[String],
    threads: usize,
    all: bool,
    cases: &Path,
) -> Vec<String> {
    if let Some(args) = suite.program {
        let cases = cases.display().to_string();
        let args = args.iter().map(|&arg| arg.to_owned());
        return std::iter::once(cases).chain(args).collect();
    }
    let mut args = filters.to_vec();
    if filters.is_empty() && !all {
        for (test, _) in suite.left_out {
            args.extend(["--skip".to_owned(), (*test).to_owned()]);
        }
    }
    let threads = format!("--test-threads={threads}");
    let format = ["-Zunstable-options", "--format=json", "--report-time"];
    args.push(threads);
    args.extend(format.map(str::to_owned));
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(filters: &[&str]) -> Vec<(&'static str, String)> {
        let filters: Vec<String> = filters.iter().map(|&text| text.to_owned()).collect();
        wanted(&filters)
            .into_iter()
            .map(|(suite, filters)| (suite.name, filters.join(" ")))
            .collect()
    }

    #[test]
    fn filters_of_one_suite_and_of_all() {
        let all = SUITES.iter().map(|suite| (suite.name, String::new()));
        assert_eq!(names(&[]), all.collect::<Vec<_>>());
        assert_eq!(names(&["kernel::dns"]), [("kernel", "dns".to_owned())]);
        assert_eq!(names(&["conformance"]), [("conformance", String::new())]);
        assert_eq!(
            names(&["dns", "e2e::life", "kernel"]),
            [
                ("kernel", String::new()),
                ("e2e", "dns life".to_owned()),
                ("parity", "dns".to_owned())
            ]
        );
    }
}
