//! `cargo xtask conformance`.

use std::path::{self, PathBuf};

use anyhow::Context as _;

use crate::{cargo, setup};

#[derive(clap::Args)]
pub struct Args {
    /// Directory of files of cases, as in tests/cases
    #[arg(long, value_name = "DIR")]
    cases: Option<PathBuf>,
}

/// Builds the runner of the test vectors and runs it.
///
/// Returns whether every case passed.
pub fn run(args: &Args) -> anyhow::Result<bool> {
    let cases = match &args.cases {
        // Cargo runs in the workspace.
        Some(cases) => path::absolute(cases).context("cannot tell the current directory")?,
        None => cargo::workspace().join("tests/cases"),
    };
    setup::ensure()?;
    cargo::succeeds(cargo::tool("conformance").arg(cases))
}
