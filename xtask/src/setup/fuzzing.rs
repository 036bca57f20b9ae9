//! What the fuzz targets are built with.

use std::{
    env,
    ffi::OsStr,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use ebpf_build::tools_dir;

use super::{apt, compiler, step};
use crate::cargo::cargo;

/// The version of cargo-fuzz that is known to work.
const VERSION: &str = "0.13.1";

/// Where cargo-fuzz is installed: among the project's own tools.
pub fn program() -> anyhow::Result<PathBuf> {
    Ok(tools_dir()?.join("bin/cargo-fuzz"))
}

pub fn find() -> anyhow::Result<String> {
    let program = program()?;
    let found = version(program.as_os_str())?;
    if found != format!("cargo-fuzz {VERSION}") {
        bail!("{} is {found}, not {VERSION}", program.display());
    }
    Ok(format!("{found}: {}", program.display()))
}

pub fn install() -> anyhow::Result<()> {
    let mut install = cargo(&[
        "install",
        "cargo-fuzz",
        "--version",
        VERSION,
        "--locked",
        "--force",
        "--root",
    ]);
    // Cargo's own temporary directory, which it removes.
    step(install.arg(tools_dir()?).env_remove("CARGO_TARGET_DIR"))
}

/// The compiler of the fuzzer itself, which is C++.
pub fn find_cxx() -> anyhow::Result<String> {
    version(&env::var_os("CXX").unwrap_or_else(|| "c++".into()))
}

pub fn install_cxx() -> anyhow::Result<()> {
    apt::install(&["g++"], || true)
}

/// Installs rustup's nightly if it is not there: no other compiler has sanitizers.
pub fn ensure_nightly() -> anyhow::Result<()> {
    if compiler::has_nightly()? {
        return Ok(());
    }
    step(compiler::rustup().args(["toolchain", "install", "nightly", "--profile", "minimal"]))
}

/// The first line of what a program says of itself, blank ones apart.
pub fn version(program: &OsStr) -> anyhow::Result<String> {
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().find(|line| !line.trim().is_empty()) {
        Some(line) if output.status.success() => Ok(line.trim().to_owned()),
        _ => bail!(
            "`{} --version` failed with {}",
            program.display(),
            output.status
        ),
    }
}
