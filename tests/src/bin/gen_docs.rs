//! Writes what of `docs/` follows from the code; run it with `cargo xtask gen-docs`.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Parser;
use sidecar_tests::docs;

/// Writes what of `docs/` follows from the code.
#[derive(Parser)]
struct Args {
    /// The directory `docs`.
    docs: PathBuf,
    /// Write nothing, and fail if anything would be written.
    #[arg(long)]
    check: bool,
}

fn main() -> Result<ExitCode> {
    let Args { docs, check } = Args::parse();
    let outdated = docs::outdated(&docs)?;
    if check {
        for name in &outdated {
            eprintln!("docs/{name} is not as the code has it: run `cargo xtask gen-docs`");
        }
        return Ok(ExitCode::from(u8::from(!outdated.is_empty())));
    }
    for (name, text) in docs::files(&docs)? {
        if outdated.contains(&name) {
            let path = docs.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            println!("docs/{name} is written");
        }
    }
    Ok(ExitCode::SUCCESS)
}
