//! Runs files of test vectors against the rules; run it with `cargo xtask conformance`.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use sidecar_agent::conformance::{CaseResult, FILES, Outcome, Runner, iptables::deviations};

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
    /// Run the cases of iptables by real connections, too: needs root
    #[arg(long)]
    live: bool,
}

#[derive(Default)]
struct Counts {
    passed: usize,
    failed: usize,
}

fn main() -> ExitCode {
    let Args { cases, live } = Args::parse();
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
    if live {
        match live::run(&cases) {
            Ok(results) => counts.add("live", results),
            Err(error) => counts.fail("live", &format!("{error:#}")),
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
    let read = fs::read_to_string(path).context("cannot be read");
    match read.and_then(|text| runner(&text).context("is no file of cases")) {
        Err(error) => counts.fail(name, &format!("{error:#}")),
        Ok(results) if results.is_empty() => counts.fail(name, "has no case"),
        Ok(results) => counts.add(name, results),
    }
}

impl Counts {
    fn add(&mut self, file: &str, results: Vec<CaseResult>) {
        for result in results {
            match result.outcome {
                Outcome::Passed => self.passed += 1,
                Outcome::Failed(why) => self.fail(file, &format!("{}: {why}", result.name)),
            }
        }
    }

    fn fail(&mut self, file: &str, why: &str) {
        println!("FAILED {file}: {why}");
        self.failed += 1;
    }
}

/// The cases of iptables by real connections.
mod live {
    use std::{fs, path::Path};

    use anyhow::{Context as _, Result};
    use sidecar_agent::conformance::{
        CaseResult,
        iptables::{
            cases,
            deviations::{self, Deviations},
        },
    };
    use sidecar_tests::interception::{
        Observer, Ours,
        conformance::{self, Compare},
    };

    /// Makes each connection in namespaces, through the agent's programs.
    pub fn run(directory: &Path) -> Result<Vec<CaseResult>> {
        let read = |name: &str| {
            fs::read_to_string(directory.join(name)).with_context(|| format!("cannot read {name}"))
        };
        let file = cases::read(&read("iptables-cases.yaml")?)?;
        let mut observer = Observer::new(Ours::new()?)?;
        let results = conformance::run(&mut observer, &file, Compare::WithoutNat)?;
        // Cases of somebody else's come without.
        if !directory.join(deviations::FILE).exists() {
            return Ok(results);
        }
        Ok(Deviations::read(&read(deviations::FILE)?, &file)?.apply(results))
    }
}
