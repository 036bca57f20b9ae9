//! Getting a compiler for the bpf target.

use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use ebpf_build::{Compiler, Source};

use super::{apt, step};

/// Where a compiler can be had.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum From {
    /// rustup's nightly toolchain with its component rust-src
    Rustup,
    /// Debian's packages rustc-web and rust-web-src
    Debian,
}

/// How long rustup may take: where its server cannot be reached it may hang.
const RUSTUP_SECONDS: &str = "300";

/// Installs one from the place asked for. If none is: from Debian's packages where there are any
/// (a machine may reach package registries and nothing else), else from rustup.
pub fn install(from: Option<From>) -> anyhow::Result<()> {
    match from {
        Some(From::Debian) => debian(),
        None if apt::exists() => {
            let Err(why) = debian() else { return Ok(()) };
            println!("      Debian's packages cannot provide it ({why:#}); trying rustup");
            nightly().context(why)
        }
        Some(From::Rustup) | None => nightly(),
    }
}

/// Whether rustup has a nightly toolchain.
pub fn has_nightly() -> anyhow::Result<bool> {
    let list = Command::new("rustup")
        .args(["toolchain", "list"])
        .output()
        .context("cannot run rustup")?;
    Ok(String::from_utf8_lossy(&list.stdout)
        .lines()
        .any(|line| line.starts_with("nightly-")))
}

/// rustup, ended when it hangs.
pub fn rustup() -> Command {
    let mut command = Command::new("timeout");
    command
        .arg(RUSTUP_SECONDS)
        .arg("rustup")
        .stdin(Stdio::null());
    command
}

fn nightly() -> anyhow::Result<()> {
    let mut command = rustup();
    step(if has_nightly()? {
        command.args(["component", "add", "rust-src", "--toolchain", "nightly"])
    } else {
        command
            .args(["toolchain", "install", "nightly", "--profile", "minimal"])
            .args(["--component", "rust-src"])
    })?;
    let found = Compiler::find()?;
    if found.source != Source::Nightly {
        bail!(
            "rustup's nightly cannot be used although it has rust-src; `rustup update nightly` may help"
        );
    }
    Ok(())
}

fn debian() -> anyhow::Result<()> {
    apt::install(&["rustc-web", "rust-web-src"], || {
        // A release has an old one; the package lists of its security updates have the one we need.
        apt::candidate("rustc-web").is_some_and(|version| Compiler::is_recent(&version))
    })
}
