//! Acceleration of connections to the proxy: what is handed over and what is not, that bytes arrive
//! once and in order whatever the sockets do, and that it is off where nobody asks for it.

mod bulk;
mod ending;
mod joining;
mod order;
mod readers;

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Lines, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, ensure};
use sidecar_agent::dataplane::socket_offsets;
use sidecar_common::values::PlanHeader;

use crate::{
    fixture::Fixture,
    plan::{Planner, proxy},
};

/// What all scripts begin with.
const ENDS: &str = include_str!("ends.py");

/// Skips the running test where the kernel lacks something that acceleration needs.
macro_rules! require_acceleration {
    () => {
        sidecar_tests::require_root!();
        if let Some(missing) = crate::accelerate::missing() {
            sidecar_tests::skip!("acceleration: {missing}");
        }
    };
}
use require_acceleration;

/// What the kernel lacks.
fn missing() -> Option<String> {
    socket_offsets().err().map(|error| format!("{error:#}"))
}

/// Everything is led to the proxy, and accelerated.
fn accelerated() -> anyhow::Result<Fixture> {
    Fixture::new(plan(true))
}

fn plan(accelerate: bool) -> Planner {
    let plan = Planner::new().proxied().outbound_default(proxy());
    if accelerate {
        plan.flags(PlanHeader::ACCELERATE)
    } else {
        plan
    }
}

/// What a script prints that the workload runs, after [`ENDS`].
fn run(fixture: &Fixture, script: &str) -> anyhow::Result<String> {
    let output = command(fixture, script).stdin(Stdio::null()).output()?;
    ensure!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// What was counted while the workload ran a script, with all of it accelerated.
fn play(script: &str) -> anyhow::Result<BTreeMap<String, u64>> {
    let fixture = accelerated()?;
    run(&fixture, script)?;
    counts(&fixture)
}

fn command(fixture: &Fixture, script: &str) -> Command {
    let mut command = fixture.inside().command("python3");
    command.args(["-c", &format!("{ENDS}\n{script}")]);
    command
}

/// A script that waits for the test in between (`pause`).
struct Running {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    fn start(fixture: &Fixture, script: &str) -> anyhow::Result<Self> {
        let mut child = command(fixture, script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take().context("no stdin")?;
        let stdout = child.stdout.take().context("no stdout")?;
        Ok(Self {
            child,
            stdin,
            lines: BufReader::new(stdout).lines(),
        })
    }

    /// Waits until it pauses at this word. What it waits for itself has deadlines.
    fn wait_for(&mut self, word: &str) -> anyhow::Result<()> {
        let line = self.lines.next().context("the script has ended")??;
        ensure!(line == word, "it says {line}, not {word}");
        Ok(())
    }

    fn go_on(&mut self) -> anyhow::Result<()> {
        Ok(writeln!(self.stdin, "go on")?)
    }

    fn end(mut self) -> anyhow::Result<()> {
        ensure!(self.child.wait()?.success(), "the script has failed");
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What was counted since the fixture was made.
fn counts(fixture: &Fixture) -> anyhow::Result<BTreeMap<String, u64>> {
    fixture.loaded.dataplane.accelerated()
}
