//! `cargo xtask conformance`.

use std::{
    path::{self, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;

use crate::{cargo, setup};

#[derive(clap::Args)]
pub struct Args {
    /// Directory of files of cases, as in tests/cases
    #[arg(long, value_name = "DIR")]
    cases: Option<PathBuf>,
    /// Run the cases of iptables by real connections through the agent's programs, too: needs root
    #[arg(long)]
    live: bool,
}

/// Builds the runner of the test vectors and runs it.
///
/// Returns its exit code: 0 when every case passed, 1 when one failed, 2 when there was none to run.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let cases = match &args.cases {
        // Cargo runs in the workspace.
        Some(cases) => path::absolute(cases).context("cannot tell the current directory")?,
        None => cargo::workspace().join("tests/cases"),
    };
    setup::ensure()?;
    let mut conformance = cargo::tool("conformance");
    conformance.arg(cases);
    if args.live {
        // Its connections are made by a program of its own.
        cargo::run(&mut cargo::cargo(&[
            "build",
            "--quiet",
            "--bins",
            "-p",
            "sidecar-tests",
        ]))?;
        conformance.arg("--live");
    }
    let code = cargo::exit_code(&mut conformance)?;
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
