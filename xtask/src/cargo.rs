//! Running cargo for this workspace.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
};

use anyhow::{Context as _, bail};

/// Root of the workspace: the parent of this package.
pub fn workspace() -> PathBuf {
    // Set by `cargo run`; a binary that is started by hand falls back on where it was built.
    let package = env::var_os("CARGO_MANIFEST_DIR")
        .unwrap_or_else(|| OsString::from(env!("CARGO_MANIFEST_DIR")));
    let package = PathBuf::from(package);
    package
        .parent()
        .map_or_else(|| package.clone(), Path::to_owned)
}

/// Cargo's target directory of the workspace, unless a configuration file moves it.
pub fn target_dir() -> PathBuf {
    let workspace = workspace();
    // An absolute path replaces the workspace's, as cargo has it.
    env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace.join("target"), |dir| workspace.join(dir))
}

/// The cargo that runs us, in the workspace.
pub fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.args(args).current_dir(workspace());
    command
}

/// A program of the tests' crate, which is built if it must be.
pub fn tool(name: &str) -> Command {
    cargo(&["run", "--quiet", "-p", "sidecar-tests", "--bin", name, "--"])
}

/// The same, built with optimizations.
pub fn optimized_tool(name: &str) -> Command {
    let run = [
        "run",
        "--quiet",
        "--release",
        "-p",
        "sidecar-tests",
        "--bin",
        name,
        "--",
    ];
    cargo(&run)
}

/// Runs a command with our own input and output.
///
/// # Errors
/// When it cannot be started or fails.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = status(command)?;
    if !status.success() {
        bail!("`{}` failed with {status}", shown(command));
    }
    Ok(())
}

/// Runs a command that itself tells what is wrong when it fails; returns whether it did not.
///
/// # Errors
/// When it cannot be started.
pub fn succeeds(command: &mut Command) -> anyhow::Result<bool> {
    Ok(status(command)?.success())
}

/// Runs a command that itself tells what is wrong when it fails; returns its exit code, or `None`
/// when a signal ended it.
///
/// # Errors
/// When it cannot be started.
pub fn exit_code(command: &mut Command) -> anyhow::Result<Option<u8>> {
    let code = status(command)?.code();
    Ok(code.and_then(|code| u8::try_from(code).ok()))
}

fn status(command: &mut Command) -> anyhow::Result<ExitStatus> {
    command
        .status()
        .with_context(|| format!("cannot run {}", shown(command)))
}

/// A command as one would type it.
pub fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or_default();
    let args = command.get_args().map(|arg| arg.to_string_lossy());
    std::iter::once(program.to_string_lossy())
        .chain(args)
        .collect::<Vec<_>>()
        .join(" ")
}
