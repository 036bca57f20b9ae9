//! `cargo xtask bench`.

use crate::{cargo, setup};

#[derive(clap::Args)]
pub struct Args {
    /// Only benchmarks whose name (`GROUP/NAME`) matches this regular expression
    filter: Option<String>,
}

/// Builds the benchmarks with optimizations, runs them, and prints the figures beside their
/// targets. A target that is missed is told, and is no failure: that would make a timed test of it.
pub fn run(args: &Args) -> anyhow::Result<()> {
    setup::ensure()?;
    let mut bench = cargo::cargo(&["bench", "-p", "sidecar-agent", "--bench", "scale", "--"]);
    cargo::run(bench.args(&args.filter))
}
