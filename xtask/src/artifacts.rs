//! Building programs, and finding what cargo has built.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use serde::Deserialize;

use crate::cargo;

/// Programs that were built, by name.
pub struct Built(Vec<(String, PathBuf)>);

impl From<Vec<(String, PathBuf)>> for Built {
    fn from(programs: Vec<(String, PathBuf)>) -> Self {
        Self(programs)
    }
}

impl Built {
    /// The path of one.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn path(&self, name: &str) -> anyhow::Result<&Path> {
        self.0
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, path)| path.as_path())
            .with_context(|| format!("cargo built no program {name}"))
    }

    /// All of them.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|(_, path)| path.as_path())
    }
}

/// Builds a program of a package of the same name, optimized, that needs no library of the system:
/// with musl where the toolchain has it, else with the system's own libraries linked in.
///
/// # Errors
/// When it does not compile.
pub fn static_program(package: &str) -> anyhow::Result<PathBuf> {
    let arch = std::env::consts::ARCH;
    let musl = musl_target();
    let gnu = format!("{arch}-unknown-linux-gnu");
    let target = if has_target(&musl) { musl } else { gnu };
    let variable = target.to_uppercase().replace('-', "_");
    let mut command = cargo::cargo(&["build", "--release", "--bins", "-p", package]);
    command.args(["--target", &target]).env(
        format!("CARGO_TARGET_{variable}_RUSTFLAGS"),
        "-Ctarget-feature=+crt-static",
    );
    let built = build(&mut command)?;
    Built::from(built).path(package).map(Path::to_owned)
}

/// The target of this machine with musl.
pub fn musl_target() -> String {
    format!("{}-unknown-linux-musl", std::env::consts::ARCH)
}

/// Whether the compiler has the standard library for a target.
pub fn has_target(target: &str) -> bool {
    let output = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args(["--print", "target-libdir", "--target", target])
        .current_dir(cargo::workspace())
        .output();
    output.is_ok_and(|output| Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir())
}

/// A copy of a program without what only a debugger reads, which is most of it.
///
/// # Errors
/// When strip cannot be run.
pub fn stripped(program: &Path, dir: &Path) -> anyhow::Result<PathBuf> {
    let to = dir.join(program.file_name().unwrap_or_default());
    let time = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified());
    if let (Ok(from), Ok(copied)) = (time(program), time(&to))
        && from <= copied
    {
        return Ok(to);
    }
    let mut strip = Command::new("strip");
    cargo::run(strip.arg("--strip-debug").arg("-o").arg(&to).arg(program))?;
    Ok(to)
}

/// What cargo says of each thing that it built.
#[derive(Deserialize)]
struct Artifact {
    reason: String,
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

/// Runs `cargo build`, or `cargo test`, and tells the programs that came of it, by name.
///
/// # Errors
/// When something does not compile.
pub fn build(command: &mut Command) -> anyhow::Result<Vec<(String, PathBuf)>> {
    command
        .args(["--quiet", "--message-format", "json-render-diagnostics"])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let output = command
        .output()
        .with_context(|| format!("cannot run {}", cargo::shown(command)))?;
    ensure!(
        output.status.success(),
        "`{}` failed",
        cargo::shown(command)
    );
    let text = String::from_utf8(output.stdout).context("cargo printed no UTF-8")?;
    artifacts(&text)
}

fn artifacts(text: &str) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for line in text.lines() {
        let artifact: Artifact =
            serde_json::from_str(line).with_context(|| format!("cargo printed {line}"))?;
        if artifact.reason == "compiler-artifact"
            && let (Some(target), Some(path)) = (artifact.target, artifact.executable)
        {
            found.push((target.name, path));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_in_what_cargo_says() {
        let text = r#"{"reason":"compiler-artifact","target":{"name":"a_library"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"kernel"},"executable":"/t/kernel-1"}
{"reason":"build-finished","success":true}"#;
        let found = vec![("kernel".to_owned(), PathBuf::from("/t/kernel-1"))];
        assert_eq!(artifacts(text).unwrap(), found);
        assert!(artifacts("warning: x").is_err());
    }
}
