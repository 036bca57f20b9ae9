//! `cargo xtask cross`: whether everything compiles for machines unlike this one. Layouts that both
//! sides must agree on are asserted in `sidecar-common/src/layout.rs`, so they are checked along.
//!
//! For the other byte order nothing is linked: `connect6` would take more stack there than a program
//! may.

use std::{io::Write as _, process::Command, time::Instant};

use ebpf_build::{Compiler, Endian};

use crate::{
    cargo::{self, target_dir, workspace},
    setup,
};

/// The other architecture that nodes have, as Rust names it.
pub const ARM: &str = "aarch64";

#[derive(clap::Args)]
pub struct Args {
    /// Make the checks whose name contains this
    filter: Option<String>,
}

/// One check.
pub struct Check {
    /// Its name.
    pub name: &'static str,
    about: &'static str,
    run: fn() -> anyhow::Result<()>,
}

/// All checks.
pub const CHECKS: [Check; 2] = [
    Check {
        name: "big-endian",
        about: "the BPF programs and what they share with the agent, in the other byte order",
        run: other_byte_order,
    },
    Check {
        name: ARM,
        about: "the agent, with BPF programs for that machine, and its tests",
        run: arm,
    },
];

/// Those whose name contains this.
pub fn wanted(filter: Option<&str>) -> impl Iterator<Item = &'static Check> {
    static TABLE: &[Check] = &CHECKS;
    TABLE
        .iter()
        .filter(move |check| filter.is_none_or(|text| check.name.contains(text)))
}

impl Check {
    /// Makes it, and tells what came of it, as `cargo test` does of a test.
    ///
    /// Returns whether it passed.
    pub fn run(&self) -> bool {
        let started = Instant::now();
        println!("{}: {}", self.name, self.about);
        let result = (self.run)();
        // What cargo says is on the other stream.
        let _ = std::io::stdout().flush();
        if let Err(error) = &result {
            println!("{error:#}");
        }
        let verdict = if result.is_ok() { "ok" } else { "FAILED" };
        let seconds = started.elapsed().as_secs();
        println!("test cross::{} ... {verdict} ({seconds} s)", self.name);
        result.is_ok()
    }
}

/// The command.
///
/// Returns whether there was a check and none failed.
pub fn run(args: &Args) -> anyhow::Result<bool> {
    setup::ensure_cross()?;
    let (passed, failed): (Vec<_>, Vec<_>) =
        wanted(args.filter.as_deref()).partition(|check| check.run());
    println!("\n{} passed, {} failed", passed.len(), failed.len());
    Ok(failed.is_empty() && !passed.is_empty())
}

fn other_byte_order() -> anyhow::Result<()> {
    // An architecture that has it: the layout of its registers is known to `aya-ebpf`.
    let (endian, arch) = match Endian::host() {
        Endian::Little => (Endian::Big, "s390x"),
        Endian::Big => (Endian::Little, "x86_64"),
    };
    let mut check = check(&Compiler::find()?, endian.target(), "core");
    check
        .args(["-p", "sidecar-ebpf", "--bins"])
        .env("RUSTFLAGS", format!("--cfg=bpf_target_arch=\"{arch}\""));
    cargo::run(&mut check)
}

fn arm() -> anyhow::Result<()> {
    let mut check = check(
        &Compiler::find()?,
        "aarch64-unknown-linux-gnu",
        "std,panic_unwind",
    );
    check
        .args(["-p", "sidecar-agent", "-p", "sidecar-tests"])
        .args(["-p", "sidecar-vm-init", "--lib", "--bins"])
        // Those with a kernel beneath.
        .args(["--test", "kernel", "--test", "e2e"])
        .args(["--test", "envoy", "--test", "parity"]);
    cargo::run(&mut check)
}

/// `cargo check` for a target, of which these parts of Rust's library are compiled along.
fn check(compiler: &Compiler, target: &str, library: &str) -> Command {
    let mut check = compiler.command();
    check
        .args(["check", "--locked", "--quiet", "--target", target])
        .arg(format!("-Zbuild-std={library}"))
        .arg("--target-dir")
        .arg(target_dir().join("cross"))
        .current_dir(workspace());
    check
}
