//! `cargo xtask soak`.

use std::os::unix::process::CommandExt as _;

use anyhow::Context as _;

use crate::{cargo, setup};

#[derive(clap::Args)]
pub struct Args {
    /// How many connections
    #[arg(long, default_value_t = 200_000)]
    connections: u64,
}

/// Builds the agent and the load, then becomes the load, as `demo` does.
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
    let mut soak = cargo::tool("soak");
    let connections = args.connections.to_string();
    Err(soak.args(["--connections", &connections]).exec()).context("cannot run the load")
}
