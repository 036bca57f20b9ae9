//! What is checked in and follows from something else: `cargo xtask gen-docs`, `cargo xtask manifests`.

use std::process::Command;

use crate::{cargo, setup};

#[derive(clap::Args)]
pub struct Args {
    /// Write nothing, and fail if anything would be written
    #[arg(long)]
    check: bool,
}

/// Writes what of docs/ follows from the code.
///
/// Returns whether everything is written or, if only checked, was up to date.
pub fn docs(args: &Args) -> anyhow::Result<bool> {
    setup::ensure()?;
    let mut generator = cargo::tool("gen_docs");
    generator.arg(cargo::workspace().join("docs"));
    run(generator, args)
}

/// Renders the Helm chart. Returns the same.
pub fn manifests(args: &Args) -> anyhow::Result<bool> {
    setup::ensure()?;
    setup::ensure_chart()?;
    run(cargo::tool("manifests"), args)
}

/// Builds the generator and runs it.
fn run(mut generator: Command, args: &Args) -> anyhow::Result<bool> {
    if args.check {
        generator.arg("--check");
    }
    cargo::succeeds(&mut generator)
}
