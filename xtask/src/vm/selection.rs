//! Which tests run in virtual machines.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail, ensure};
use sidecar_vm_init::{Cgroups, Job, PATH, Suite};

use super::suites::{SUITES, VmSuite};
use crate::{artifacts::Built, cargo};

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
/// When a program was not built, or does not tell its tests, or [`SUITES`] names none of them.
pub fn with_tests(suites: Vec<Chosen>, built: &Built) -> anyhow::Result<Vec<Chosen>> {
    let mut kept = Vec::new();
    for (suite, filters) in suites {
        if suite.program.is_some() {
            kept.push((suite, filters));
            continue;
        }
        let tests = tests(built.path(suite.name)?)?;
        let is_there = |part: &&str| tests.iter().any(|test| test.contains(part));
        if let Some(part) = suite.parts().find(|part| !is_there(part)) {
            bail!(
                "no test of the suite {} has `{part}` in its name, as xtask/src/vm/suites.rs says",
                suite.name
            );
        }
        if filters.is_empty() || filters.iter().any(|part| is_there(&part.as_str())) {
            kept.push((suite, filters));
        }
    }
    Ok(kept)
}

/// The names of a program's tests.
fn tests(program: &Path) -> anyhow::Result<Vec<String>> {
    let mut command = Command::new(program);
    command.args(["--list", "--format", "terse"]);
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
        .filter_map(|line| Some(line.strip_suffix(": test")?.to_owned()))
        .collect())
}

/// How much of a selection runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    /// The few, everywhere.
    Few,
    /// What is worth its time; and the few in machines that have version 1 of cgroups, too.
    Usual,
    /// Everything that was selected.
    All,
}

/// What machines are to do.
///
/// # Errors
/// When a program was not built.
pub fn job(
    chosen: &[Chosen],
    built: &Built,
    threads: usize,
    extent: Extent,
) -> anyhow::Result<Job> {
    let cases = cargo::workspace().join("tests/cases");
    let mut suites = Vec::new();
    for cgroups in [Cgroups::Pure, Cgroups::Hybrid] {
        for (suite, filters) in chosen {
            let Some(args) = args(suite, filters, cgroups, extent) else {
                continue;
            };
            let rest = match suite.program {
                Some(args) => [cases.display().to_string()]
                    .into_iter()
                    .chain(args.iter().map(|&arg| arg.to_owned()))
                    .collect(),
                None => libtest(threads),
            };
            suites.push(Suite {
                name: suite.name.to_owned(),
                cgroups,
                program: built.path(suite.name)?.to_owned(),
                args: args.into_iter().chain(rest).collect(),
            });
        }
    }
    let env = [
        ("PATH", PATH),
        ("HOME", "/root"),
        ("LC_ALL", "C.UTF-8"),
        ("SIDECAR_TEST_PREBUILT", "1"),
        ("SIDECAR_TEST_OWN_MACHINE", "1"),
        // libtest's format for programs is not stable.
        ("RUSTC_BOOTSTRAP", "1"),
    ];
    let env = env.map(|(key, value)| (key.to_owned(), value.to_owned()));
    Ok(Job {
        env: env.to_vec(),
        suites,
    })
}

fn libtest(threads: usize) -> Vec<String> {
    let format = ["-Zunstable-options", "--format=json", "--report-time"];
    std::iter::once(format!("--test-threads={threads}"))
        .chain(format.map(str::to_owned))
        .collect()
}

/// The arguments that select tests, or `None` where none runs.
fn args(
    suite: &VmSuite,
    filters: &[String],
    cgroups: Cgroups,
    extent: Extent,
) -> Option<Vec<String>> {
    if !filters.is_empty() || extent == Extent::All {
        return Some(filters.to_vec());
    }
    let few = extent == Extent::Few || cgroups == Cgroups::Hybrid;
    match suite {
        _ if few => {
            let tests = suite.few.iter().map(|&test| test.to_owned());
            (!suite.few.is_empty()).then(|| tests.collect())
        }
        _ if suite.left_out.iter().any(|(test, _)| test.is_empty()) => None,
        _ => {
            let skip = |(test, _): &(&str, _)| ["--skip".to_owned(), (*test).to_owned()];
            Some(suite.left_out.iter().flat_map(skip).collect())
        }
    }
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

    #[test]
    fn what_is_left_out_runs_when_it_is_asked_for() {
        let suite = &SUITES[0];
        let usual = args(suite, &[], Cgroups::Pure, Extent::Usual).unwrap();
        assert!(usual.contains(&"plans::".to_owned()), "{usual:?}");
        let asked = vec!["plans::".to_owned()];
        for cgroups in [Cgroups::Pure, Cgroups::Hybrid] {
            let found = args(suite, &asked, cgroups, Extent::Usual).unwrap();
            assert_eq!(found, asked);
            assert!(args(suite, &[], cgroups, Extent::All).unwrap().is_empty());
            let few = args(suite, &[], cgroups, Extent::Few).unwrap();
            assert!(!few.contains(&"--skip".to_owned()), "{few:?}");
            assert!(few.len() > 1, "{few:?}");
        }
        let hybrid = args(suite, &[], Cgroups::Hybrid, Extent::Usual);
        assert_eq!(hybrid, args(suite, &[], Cgroups::Pure, Extent::Few));
    }
}
