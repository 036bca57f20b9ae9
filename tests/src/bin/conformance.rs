//! Runs files of test vectors against the rules; run it with `cargo xtask conformance`.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use sidecar_agent::conformance::{FILES, Outcome, Runner, iptables::deviations};

/// As clap's for arguments that cannot be used.
const USAGE: u8 = 2;

/// Runs every case of a directory.
///
/// The last line on standard output is `N passed, N failed`; files that hold no cases that can be
/// run, and files that are not there, are told on standard error. Exit code 0 when every case
/// passed; 1 when one failed, or a file of cases could not be read or has none; 2 when there is no
/// file of cases.
#[derive(Parser)]
struct Args {
    /// Directory of files of cases.
    cases: PathBuf,
}

#[derive(Default)]
struct Counts {
    passed: usize,
    failed: usize,
}

fn main() -> ExitCode {
    let Args { cases } = Args::parse();
    let names = match names(&cases) {
        Ok(names) => names,
        Err(error) => {
            eprintln!("error: {error:#}");
            return USAGE.into();
        }
    };
    let mut counts = Counts::default();
    for (name, runner) in FILES {
        if names.iter().any(|known| known == name) {
            run(&cases.join(name), name, runner, &mut counts);
        } else {
            eprintln!("not there: {name}");
        }
    }
    println!("{} passed, {} failed", counts.passed, counts.failed);
    if counts.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The names in the directory. Tells which are none of files of cases.
fn names(directory: &Path) -> Result<Vec<OsString>> {
    let names = fs::read_dir(directory)
        .and_then(|entries| {
            let mut names = entries
                .map(|entry| entry.map(|entry| entry.file_name()))
                .collect::<io::Result<Vec<_>>>()?;
            names.sort();
            Ok(names)
        })
        .with_context(|| format!("cannot list the directory of cases {}", directory.display()))?;
    let known = FILES.map(|(name, _)| name);
    let is_yaml = |name: &Path| {
        name.extension()
            .is_some_and(|end| end == "yaml" || end == "yml")
    };
    for name in &names {
        let shown = name.display();
        if name != deviations::FILE
            && is_yaml(name.as_ref())
            && !known.iter().any(|known| name == known)
        {
            eprintln!("not run, since no runner has this name: {shown}");
        }
    }
    if !known
        .iter()
        .any(|known| names.iter().any(|name| name == known))
    {
        bail!(
            "no file of cases in {}; their names are {}",
            directory.display(),
            known.join(", ")
        );
    }
    Ok(names)
}

fn run(path: &Path, name: &str, runner: Runner, counts: &mut Counts) {
    let mut failed = |case: &str, why: &str| {
        println!("FAILED {name}: {case}{why}");
        counts.failed += 1;
    };
    let read = fs::read_to_string(path).context("cannot be read");
    let results = read.and_then(|text| runner(&text).context("is no file of cases"));
    match results {
        Err(error) => failed("", &format!("{error:#}")),
        Ok(results) if results.is_empty() => failed("", "has no case"),
        Ok(results) => {
            for result in results {
                match result.outcome {
                    Outcome::Passed => counts.passed += 1,
                    Outcome::Failed(why) => failed(&format!("{}: ", result.name), &why),
                }
            }
        }
    }
}
