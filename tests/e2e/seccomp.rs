//! The system calls that the unit of systemd permits, and those that the agent makes.

use std::{collections::BTreeSet, fs, process::Command};

use anyhow::{Context as _, ensure};
use sidecar_tests::{DEADLINE, command::output, lab::Lab, poll, require_root, skip};

use crate::{privileges::CASES, service::unit_file};

/// The calls of a set of systemd's, with those of the sets in it.
fn calls_in(set: &str) -> anyhow::Result<BTreeSet<String>> {
    let text = output(Command::new("systemd-analyze").args(["syscall-filter", set]))?;
    let words = text.lines().map(str::trim).skip(1);
    let mut found = BTreeSet::new();
    for word in words.filter(|word| !word.is_empty() && !word.starts_with('#')) {
        if word.starts_with('@') {
            found.extend(calls_in(word)?);
        } else {
            found.insert(word.to_owned());
        }
    }
    Ok(found)
}

/// What is left of these lines: what they permit one after the other, less what begins with `~`.
fn permitted() -> anyhow::Result<BTreeSet<String>> {
    let unit = fs::read_to_string(unit_file())?;
    let lines = unit
        .lines()
        .filter_map(|line| line.strip_prefix("SystemCallFilter="));
    let mut permitted = BTreeSet::new();
    for line in lines {
        let (is_denied, words) = match line.strip_prefix('~') {
            Some(words) => (true, words),
            None => (false, line),
        };
        for word in words.split_whitespace() {
            let calls = if word.starts_with('@') {
                calls_in(word)?
            } else {
                BTreeSet::from([word.to_owned()])
            };
            if is_denied {
                permitted.retain(|call| !calls.contains(call));
            } else {
                permitted.extend(calls);
            }
        }
    }
    // Always permitted, whatever a unit says.
    permitted.extend(calls_in("@default")?);
    Ok(permitted)
}

/// Runs an agent under strace, in a lab that is made so, and tells what it has called.
fn called(
    prepare: fn(&mut Lab) -> anyhow::Result<()>,
    works: fn(&Lab) -> anyhow::Result<bool>,
) -> anyhow::Result<BTreeSet<String>> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("calls");
    let mut lab = Lab::new()?;
    lab.announce("10.96.0.0/16")?;
    lab.write_mesh("{}\n")?;
    prepare(&mut lab)?;
    let tracer = ["strace", "-D", "-f", "-c", "-U", "name", "-o"].map(std::ffi::OsStr::new);
    let tracer = tracer.into_iter().chain([file.as_os_str()]);
    lab.start_agent_with(|agent| agent.under(tracer))?;
    lab.wait_captured()?;
    ensure!(works(&lab)?, "it does not work under strace");
    lab.agent_mut()?.stop()?;
    let text = poll(DEADLINE, "strace to end", || {
        let text = fs::read_to_string(&file).ok()?;
        (text.lines().last()?.trim() == "total").then_some(text)
    })
    .context("strace told nothing")?;
    let is_name = |line: &&str| {
        let letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
        !line.is_empty() && line.chars().all(letter) && *line != "syscall" && *line != "total"
    };
    Ok(text
        .lines()
        .map(str::trim)
        .filter(is_name)
        .map(str::to_owned)
        .collect())
}

#[test]
fn the_unit_permits_what_the_agent_calls() -> anyhow::Result<()> {
    require_root!();
    for program in ["systemd-analyze", "strace"] {
        if Command::new(program).arg("--version").output().is_err() {
            skip!("{program}");
        }
    }
    let permitted = permitted()?;
    ensure!(!permitted.contains("mount") && !permitted.contains("ptrace"));
    for case in CASES {
        let mut called = called(case.prepare, case.works)?;
        for call in ["bpf", "setns", "capset", "execve"] {
            ensure!(called.contains(call), "{call} is not told: {called:?}");
        }
        called.retain(|call| !permitted.contains(call));
        ensure!(called.is_empty(), "not permitted: {called:?}");
    }
    Ok(())
}
