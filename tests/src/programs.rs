//! The programs that the tests run.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Context as _, anyhow};

use crate::command;

/// Set by `cargo xtask test`, which builds the programs beforehand.
const PREBUILT_ENV: &str = "SIDECAR_TEST_PREBUILT";

/// The path of `app`, this crate's server and client (see [`apps`](crate::apps)).
///
/// # Errors
/// When it cannot be built.
pub fn app() -> anyhow::Result<PathBuf> {
    static BUILT: OnceLock<Result<(), String>> = OnceLock::new();
    program("sidecar-tests", "app", &BUILT)
}

/// The path of `sidecar-agent`.
///
/// # Errors
/// When it cannot be built.
pub fn agent() -> anyhow::Result<PathBuf> {
    static BUILT: OnceLock<Result<(), String>> = OnceLock::new();
    program("sidecar-agent", "sidecar-agent", &BUILT)
}

/// Cargo builds a package's programs for its integration tests only, and never those of another
/// package, so they are built here, once in a process: what is tested is what the source says.
fn program(
    package: &str,
    name: &str,
    built: &OnceLock<Result<(), String>>,
) -> anyhow::Result<PathBuf> {
    let exe = env::current_exe().context("cannot find this program's own path")?;
    let dir = profile_dir(&exe).with_context(|| format!("{} has no directory", exe.display()))?;
    if env::var_os(PREBUILT_ENV).is_none() {
        built
            .get_or_init(|| build(package, dir).map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(|error| anyhow!("{error}"))?;
    }
    Ok(dir.join(name))
}

/// `TARGET/PROFILE` of a program there, or of a test in `deps` below it.
fn profile_dir(exe: &Path) -> Option<&Path> {
    let dir = exe.parent()?;
    if dir.file_name() == Some(OsStr::new("deps")) {
        dir.parent()
    } else {
        Some(dir)
    }
}

fn build(package: &str, profile_dir: &Path) -> anyhow::Result<()> {
    let profile = match profile_dir.file_name().and_then(OsStr::to_str) {
        None | Some("debug") => "dev",
        Some(profile) => profile,
    };
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args([
            "build",
            "--quiet",
            "--bins",
            "--package",
            package,
            "--profile",
            profile,
        ])
        .arg("--target-dir")
        .arg(profile_dir.parent().unwrap_or(profile_dir));
    command::output(&mut cargo)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_beside_tests_and_other_programs() {
        let debug = Path::new("/t/debug");
        assert_eq!(
            profile_dir(Path::new("/t/debug/deps/kernel-0123")),
            Some(debug)
        );
        assert_eq!(profile_dir(Path::new("/t/debug/demo")), Some(debug));
    }
}
