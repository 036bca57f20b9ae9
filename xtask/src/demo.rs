//! `cargo xtask demo`.

use std::os::unix::process::CommandExt as _;

use anyhow::Context as _;

use crate::{cargo, setup};

#[derive(clap::Args)]
pub struct Args {
    /// Given to the demo as they are
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// Builds the agent and the demo, then becomes the demo: `exec`, here and in `cargo run`, so that
/// a signal from the terminal or by process id reaches the demo alone, which cleans up before it
/// ends.
pub fn run(args: &Args) -> anyhow::Result<()> {
    setup::ensure()?;
    cargo::run(&mut cargo::cargo(&[
        "build",
        "--quiet",
        "-p",
        "sidecar-agent",
        "-p",
        "sidecar-tests",
        "--bins",
    ]))?;
    let mut demo = cargo::tool("demo");
    Err(demo.args(&args.args).exec()).context("cannot run the demo")
}
