//! `cargo xtask fuzz`.

use std::{
    env::consts::ARCH,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;

use crate::{
    cargo::{self, target_dir, workspace},
    setup,
};

/// A fuzz target: a program of the crate `fuzz`.
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// What it tries.
    about: &'static str,
    /// The directory of `fuzz/regressions` for inputs on which it fails.
    regressions: &'static str,
    /// Longest input, in bytes.
    longest: u32,
    /// Its input is bytes that a file of resources is made of, rather than text.
    made: bool,
}

/// All targets.
pub const TARGETS: [Target; 3] = [
    Target {
        name: "yaml_model",
        about: "any text as a file of resources",
        regressions: "model",
        longest: 4096,
        made: false,
    },
    Target {
        name: "structured_model",
        about: "resources of the right shape with any contents",
        regressions: "model",
        longest: 2048,
        made: true,
    },
    Target {
        name: "grammars",
        about: "any text as hosts, endpoints, addresses, annotations, cgroup paths",
        regressions: "grammars",
        longest: 512,
        made: false,
    },
];

/// Longest that one input may take.
const INPUT_SECONDS: u32 = 10;
/// Most memory that a target may use.
const MEGABYTES: u32 = 2048;

#[derive(clap::Args)]
pub struct Args {
    /// Run these targets only
    #[arg(value_name = "TARGET", value_parser = names())]
    targets: Vec<String>,
    /// How long each target runs
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// Seed of the fuzzer's random numbers
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    seed: u32,
    /// Build with a sanitizer; needs rustup's nightly, which is installed
    #[arg(long, value_enum, default_value_t)]
    sanitizer: Sanitizer,
}

/// What the targets are built with besides the counters of the fuzzer.
#[derive(Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum Sanitizer {
    /// Nothing: builds with any toolchain, and runs faster
    #[default]
    None,
    /// `AddressSanitizer`
    Address,
}

fn names() -> clap::builder::PossibleValuesParser {
    TARGETS.each_ref().map(|target| target.name).into()
}

/// Runs the targets.
///
/// Returns whether none failed.
pub fn run(args: &Args) -> anyhow::Result<bool> {
    let wanted = |target: &&Target| {
        args.targets.is_empty() || args.targets.iter().any(|name| name == target.name)
    };
    let targets: Vec<&Target> = TARGETS.iter().filter(wanted).collect();
    let fuzzer = Fuzzer::build(args.sanitizer)?;
    let mut good = true;
    for target in targets {
        good &= fuzzer.run(target, Duration::from_secs(args.seconds), args.seed)?;
    }
    Ok(good)
}

/// The targets, built, with inputs to begin with.
pub struct Fuzzer {
    /// Everything that fuzzing writes.
    dir: PathBuf,
    programs: PathBuf,
}

impl Fuzzer {
    /// Builds for a short run.
    pub fn quick() -> anyhow::Result<Self> {
        Self::build(Sanitizer::None)
    }

    fn build(sanitizer: Sanitizer) -> anyhow::Result<Self> {
        setup::ensure_with_fuzzing()?;
        let dir = target_dir().join("fuzz");
        let mut build = Command::new(setup::fuzzing::program()?);
        build
            // One unit for each crate, the default, takes twice as long to build.
            .args(["build", "--codegen-units", "16"])
            .args(["--target", &triple()])
            .arg("--target-dir")
            .arg(&dir)
            .current_dir(workspace());
        match sanitizer {
            Sanitizer::None => build.args(["--sanitizer", "none"]),
            Sanitizer::Address => {
                setup::fuzzing::ensure_nightly()?;
                build
                    .args(["--sanitizer", "address"])
                    .env("RUSTUP_TOOLCHAIN", "nightly")
                    // Those of the toolchain that runs us.
                    .env_remove("CARGO")
                    .env_remove("RUSTC")
            }
        };
        println!("building the fuzz targets");
        cargo::run(&mut build)?;

        let mut seeds = cargo::cargo(&["run", "--quiet", "-p", "sidecar-fuzz-checks"]);
        seeds
            .args(["--bin", "seeds", "--"])
            .arg(workspace().join("tests/cases"))
            .arg(dir.join("seeds"));
        cargo::run(&mut seeds)?;
        Ok(Self {
            programs: dir.join(triple()).join("release"),
            dir,
        })
    }

    /// Runs one target and tells what came of it.
    ///
    /// Returns whether it did not fail.
    pub fn run(&self, target: &Target, time: Duration, seed: u32) -> anyhow::Result<bool> {
        println!("{}: {}; seed {seed}", target.name, target.about);
        let corpus = self.made_dir("corpus", target)?;
        let failures = self.made_dir("failures", target)?;
        let mut command = Command::new(self.programs.join(target.name));
        command
            // What is found goes into the first directory.
            .arg(corpus)
            .args(self.inputs(target))
            .arg(format!("-max_total_time={}", time.as_secs()))
            .arg(format!("-seed={seed}"))
            .arg(format!("-max_len={}", target.longest))
            .arg(format!("-timeout={INPUT_SECONDS}"))
            .arg(format!("-rss_limit_mb={MEGABYTES}"))
            .arg(format!("-artifact_prefix={}/", failures.display()))
            .arg("-print_final_stats=1")
            .current_dir(workspace())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if !target.made {
            let words = self.dir.join("seeds/words");
            command.arg(format!("-dict={}", words.display()));
        }
        let started = Instant::now();
        let (report, status) = watch(&mut command)?;
        println!(
            "{}: {} runs in {} s, coverage {} (from {} at the start), {}",
            target.name,
            report.runs,
            started.elapsed().as_secs(),
            report.last,
            report.first.unwrap_or_default(),
            if status.success() {
                "no failure"
            } else {
                "FAILED"
            },
        );
        if status.success() {
            return Ok(true);
        }
        for line in &report.said {
            println!("  {line}");
        }
        match &report.failure {
            Some(input) => self.advise(target, input)?,
            None => println!("{} ended with {status}, and left no input", target.name),
        }
        Ok(false)
    }

    /// Directories of inputs that are only read.
    fn inputs(&self, target: &Target) -> Vec<PathBuf> {
        let seeds = self.dir.join("seeds");
        if target.made {
            return vec![seeds.join("noise")];
        }
        vec![
            workspace().join("tests/resources"),
            workspace()
                .join("fuzz/regressions")
                .join(target.regressions),
            seeds.join(target.regressions),
        ]
    }

    fn made_dir(&self, kind: &str, target: &Target) -> anyhow::Result<PathBuf> {
        let dir = self.dir.join(kind).join(target.name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(dir)
    }

    /// Tells how to see a failure again and how to keep its input.
    fn advise(&self, target: &Target, input: &Path) -> anyhow::Result<()> {
        let program = self.programs.join(target.name);
        let text = if target.made {
            let text = input.with_added_extension("yaml");
            // The fuzzer's library then writes the input as it is debugged, and runs nothing.
            let mut show = Command::new(&program);
            show.arg(input)
                .env("RUST_LIBFUZZER_DEBUG_PATH", &text)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            cargo::run(&mut show)?;
            text
        } else {
            input.to_owned()
        };
        let name = input.file_name().unwrap_or_default();
        println!(
            "  the input: {}\n  \
             to run it again: {} {}\n  \
             to make it a test: cp {} {}",
            text.display(),
            program.display(),
            input.display(),
            text.display(),
            workspace()
                .join("fuzz/regressions")
                .join(target.regressions)
                .join(name)
                .display(),
        );
        Ok(())
    }
}

/// The target triple, which is part of the path of the programs.
fn triple() -> String {
    format!("{ARCH}-unknown-linux-gnu")
}

/// What the fuzzer says while it runs.
#[derive(Default, PartialEq, Eq, Debug)]
struct Report {
    runs: u64,
    /// Coverage once the inputs to begin with were run.
    first: Option<u64>,
    last: u64,
    /// The input on which the target failed.
    failure: Option<PathBuf>,
    /// All but progress and statistics.
    said: Vec<String>,
}

impl Report {
    fn add_line(&mut self, line: &str) {
        if let Some(progress) = line.strip_prefix('#') {
            let words: Vec<&str> = progress.split_whitespace().collect();
            let cov = words.windows(2).find(|pair| pair.first() == Some(&"cov:"));
            let Some(cov) = cov.and_then(|pair| pair.last()?.parse().ok()) else {
                return;
            };
            if words.contains(&"INITED") {
                self.first = Some(cov);
            }
            self.last = cov;
            let runs = words.first().and_then(|runs| runs.parse().ok());
            self.runs = runs.unwrap_or(self.runs);
        } else if let Some(runs) = line.strip_prefix("stat::number_of_executed_units:") {
            self.runs = runs.trim().parse().unwrap_or(self.runs);
        } else if let Some((_, input)) = line.split_once("Test unit written to ") {
            self.failure = Some(input.trim().into());
        } else if !["INFO: ", "stat::", "Dictionary: ", "Done "]
            .iter()
            .any(|start| line.starts_with(start))
        {
            self.said.push(line.to_owned());
        }
    }
}

fn watch(command: &mut Command) -> anyhow::Result<(Report, ExitStatus)> {
    let shown = cargo::shown(command);
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot run {shown}"))?;
    let stderr = child
        .stderr
        .take()
        .context("the fuzz target has no stderr")?;
    let mut report = Report::default();
    for line in BufReader::new(stderr).split(b'\n') {
        let line = line.with_context(|| format!("cannot read what {shown} prints"))?;
        report.add_line(&String::from_utf8_lossy(&line));
    }
    let status = child
        .wait()
        .with_context(|| format!("cannot wait for {shown}"))?;
    Ok((report, status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fuzzer_is_understood() {
        let mut report = Report::default();
        for line in [
            "INFO: Seed: 1",
            "#2\tINITED cov: 12 ft: 15 corp: 1/1b exec/s: 0 rss: 30Mb",
            "#9\tNEW    cov: 40 ft: 99 corp: 2/9b lim: 4 exec/s: 0 rss: 31Mb L: 8/8 MS: 1 ChangeBit-",
            "thread '<unnamed>' panicked at fuzz/checks/src/model.rs:1:1:",
            "artifact_prefix='f/'; Test unit written to f/crash-0a",
            "stat::number_of_executed_units: 11",
        ] {
            report.add_line(line);
        }
        let expected = Report {
            runs: 11,
            first: Some(12),
            last: 40,
            failure: Some("f/crash-0a".into()),
            said: vec!["thread '<unnamed>' panicked at fuzz/checks/src/model.rs:1:1:".to_owned()],
        };
        assert_eq!(report, expected);
    }
}
