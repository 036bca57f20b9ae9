//! `cargo xtask manifests`.

use crate::{cargo, setup};

#[derive(clap::Args)]
pub struct Args {
    /// Write nothing, and fail if anything would be written
    #[arg(long)]
    check: bool,
}

/// Builds the generator and runs it.
///
/// Returns whether everything is written or, if only checked, was up to date.
pub fn run(args: &Args) -> anyhow::Result<bool> {
    setup::ensure()?;
    setup::ensure_chart()?;
    let mut generator = cargo::tool("manifests");
    if args.check {
        generator.arg("--check");
    }
    cargo::succeeds(&mut generator)
}
