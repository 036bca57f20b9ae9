//! Runs files of test vectors against the rules; run it with `cargo xtask conformance`.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::Parser;
use sidecar_agent::conformance::{FILES, NOT_RUN_YET, Outcome};

/// Runs every case of a directory.
///
/// The last line on standard output is `N passed, N failed`; what was not run is told on standard
/// error. Exit code 0 when every case passed, 1 when one failed, a file could not be read, or
/// there was no case.
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
    let mut counts = Counts::default();
    if let Err(error) = run(&cases, &mut counts) {
        eprintln!("error: {error:#}");
        counts.failed += 1;
    }
    if counts.passed + counts.failed == 0 {
        eprintln!("error: no case in {}", cases.display());
    }
    println!("{} passed, {} failed", counts.passed, counts.failed);
    if counts.failed == 0 && counts.passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn run(directory: &Path, counts: &mut Counts) -> Result<()> {
    for name in names(directory).with_context(|| format!("cannot list {}", directory.display()))? {
        let path = directory.join(&name);
        let Some((name, run)) = FILES.iter().find(|(known, _)| name == *known) else {
            if NOT_RUN_YET.iter().any(|known| name == *known) {
                eprintln!("not run yet: {}", name.display());
            } else if path
                .extension()
                .is_some_and(|end| end == "yaml" || end == "yml")
            {
                eprintln!("not a case file: {}", name.display());
            }
            continue;
        };
        let read = fs::read_to_string(&path).context("cannot be read");
        let results = match read.and_then(|text| run(&text).context("is no file of cases")) {
            Ok(results) => results,
            Err(error) => {
                println!("FAILED {name}: {error:#}");
                counts.failed += 1;
                continue;
            }
        };
        for result in results {
            match result.outcome {
                Outcome::Passed => counts.passed += 1,
                Outcome::Failed(why) => {
                    println!("FAILED {name}: {}: {why}", result.name);
                    counts.failed += 1;
                }
                Outcome::NotRun(why) => eprintln!("not run: {name}: {}: {why}", result.name),
            }
        }
    }
    Ok(())
}

fn names(directory: &Path) -> io::Result<Vec<OsString>> {
    let mut names = fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}
