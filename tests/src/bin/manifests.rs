//! Renders the Helm chart; run it with `cargo xtask manifests`.

use std::{fs, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Parser;
use sidecar_tests::manifests::RENDERINGS;

/// Renders the Helm chart into what is checked in.
#[derive(Parser)]
struct Args {
    /// Write nothing, and fail if anything would be written.
    #[arg(long)]
    check: bool,
}

fn main() -> Result<ExitCode> {
    let Args { check } = Args::parse();
    let mut code = ExitCode::SUCCESS;
    for rendering in RENDERINGS {
        if rendering.is_current()? {
            continue;
        }
        if check {
            let file = rendering.file;
            eprintln!("{file} is not as the chart has it: run `cargo xtask manifests`");
            code = ExitCode::FAILURE;
            continue;
        }
        let path = rendering.path();
        fs::write(&path, rendering.render()?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("{} is written", rendering.file);
    }
    Ok(code)
}
