//! Running the tests.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
};

use anyhow::Context as _;
use sidecar_vm_init::{Cgroups, JOB, Job, PORT, Record, Suite};

use crate::mounts::cgroups_asked_for;

/// The file for what tests say that skip themselves.
const SKIPS: &str = "/run/skips";

/// The serial port that records are written to.
pub struct Port(File);

impl Port {
    /// Opens it.
    ///
    /// # Errors
    /// When the machine has no second serial port.
    pub fn open() -> anyhow::Result<Self> {
        let port = OpenOptions::new()
            .write(true)
            .open(PORT)
            .with_context(|| format!("cannot open {PORT}"))?;
        Ok(Self(port))
    }

    fn write(&mut self, record: &Record) -> anyhow::Result<()> {
        let mut line = serde_json::to_string(record).context("cannot make JSON of a record")?;
        line.push('\n');
        self.0
            .write_all(line.as_bytes())
            .with_context(|| format!("cannot write to {PORT}"))
    }

    /// Tells what is missing.
    ///
    /// # Errors
    /// When the port does not take it.
    pub fn trouble(&mut self, what: String) -> anyhow::Result<()> {
        self.write(&Record::Trouble(what))
    }

    /// Tells that the machine is ready.
    ///
    /// # Errors
    /// When the port does not take it.
    pub fn booted(&mut self, release: String, cgroups: Cgroups) -> anyhow::Result<()> {
        self.write(&Record::Booted { release, cgroups })
    }
}

/// Runs all suites of the job.
///
/// # Errors
/// When there is no job, or a suite cannot be run.
pub fn run() -> anyhow::Result<()> {
    let text = fs::read_to_string(JOB).with_context(|| format!("cannot read {JOB}"))?;
    let job: Job = serde_json::from_str(&text).with_context(|| format!("{JOB} is no job"))?;
    let mut port = Port::open()?;
    let cgroups = cgroups_asked_for()?;
    for suite in job.suites.iter().filter(|suite| suite.cgroups == cgroups) {
        run_suite(suite, &job.env, &mut port)?;
    }
    port.write(&Record::Finished)
}

fn run_suite(suite: &Suite, env: &[(String, String)], port: &mut Port) -> anyhow::Result<()> {
    let name = || suite.name.clone();
    port.write(&Record::Begun { suite: name() })?;
    File::create(SKIPS).with_context(|| format!("cannot make {SKIPS}"))?;
    let mut child = Command::new(&suite.program)
        .args(&suite.args)
        .envs(env.iter().map(|(key, value)| (key, value)))
        .env(Suite::skips_env(), SKIPS)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", suite.program.display()))?;
    let stdout = child.stdout.take().context("the tests have no output")?;
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.context("cannot read what the tests print")?;
        let line = String::from_utf8_lossy(&line).into_owned();
        port.write(&Record::Line {
            suite: name(),
            line,
        })?;
    }
    let status = child.wait().context("cannot wait for the tests")?;
    let skips = fs::read_to_string(SKIPS).with_context(|| format!("cannot read {SKIPS}"))?;
    port.write(&Record::Ended {
        suite: name(),
        failure: (!status.success()).then(|| status.to_string()),
        skips: skips.lines().map(str::to_owned).collect(),
    })
}
