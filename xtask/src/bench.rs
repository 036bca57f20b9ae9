//! `cargo xtask bench`.

use std::{os::unix::process::CommandExt as _, path::PathBuf};

use anyhow::Context as _;

use crate::{cargo, setup};

#[derive(clap::Args)]
pub struct Args {
    /// Write the results to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the ratios to this file, as SVG
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Fewer and shorter slices: to see where things stand
    #[arg(long)]
    quick: bool,
    /// Measure this part only (repeatable): connect, acceleration, direct, hooks, relay, idle,
    /// toggle, node or bystander
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    /// Measure instead how long a large node takes to compile: all of it, or what of it matches this
    /// regular expression (`GROUP/NAME`)
    #[arg(long, value_name = "FILTER", num_args = 0..=1, default_missing_value = "", conflicts_with_all = ["json", "svg", "quick", "groups"])]
    scale: Option<String>,
}

/// Builds with optimizations, then becomes the benchmark. A target that is missed is told, and is no
/// failure: that would make a timed test of it.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(filter) = &args.scale {
        setup::ensure()?;
        let mut bench = cargo::cargo(&["bench", "-p", "sidecar-agent", "--bench", "scale", "--"]);
        return cargo::run(bench.args(Some(filter).filter(|filter| !filter.is_empty())));
    }
    setup::ensure_bench()?;
    cargo::run(&mut cargo::cargo(&[
        "build",
        "--quiet",
        "--release",
        "-p",
        "sidecar-agent",
        "-p",
        "sidecar-tests",
        "--bins",
    ]))?;
    let mut bench = cargo::optimized_tool("bench");
    for group in &args.groups {
        bench.args(["--group", group]);
    }
    if args.quick {
        bench.arg("--quick");
    }
    for (option, file) in [("--json", &args.json), ("--svg", &args.svg)] {
        if let Some(file) = file {
            // The program is run in the workspace, wherever this was called.
            bench.arg(option).arg(std::path::absolute(file)?);
        }
    }
    Err(bench.env(crate::test::PREBUILT_ENV, "1").exec()).context("cannot run the benchmark")
}
