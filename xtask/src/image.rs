//! `cargo xtask image`: a container image with a static agent and nothing else.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use crate::{artifacts, cargo, setup};

const AGENT: &str = "sidecar-agent";

/// Builds it, and tells where it is and how large.
pub fn run() -> anyhow::Result<()> {
    setup::ensure_image()?;
    let program = artifacts::static_program(AGENT)?;
    let dir = dir();
    let context = dir.join("context");
    let in_image = fill(&context, &program)?;
    let archive = archive();
    build(&dir, &context, &archive)?;
    let size = |path: &Path| -> anyhow::Result<String> {
        let bytes = fs::metadata(path)
            .with_context(|| format!("cannot read {}", path.display()))?
            .len();
        // Tenths are enough, and whole numbers lose nothing.
        let tenths = bytes / 100_000;
        Ok(format!("{}.{} MB", tenths / 10, tenths % 10))
    };
    println!("program: {}", size(&in_image)?);
    println!("image:   {} ({})", size(&archive)?, archive.display());
    Ok(())
}

/// Everything of it.
fn dir() -> PathBuf {
    cargo::target_dir().join("image")
}

/// The image, in the format of the Open Container Initiative. Tests load it from here.
fn archive() -> PathBuf {
    dir().join("sidecar-agent.oci.tar")
}

/// Makes the directory that the image is built from; returns the agent in it.
fn fill(context: &Path, program: &Path) -> anyhow::Result<PathBuf> {
    match fs::remove_dir_all(context) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", context.display()));
        }
        _ => {}
    }
    let root = context.join("rootfs");
    let make = |name: &str| {
        let path = root.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))
    };
    // `run` is where the namespaces of pods are found, by either of its names.
    for name in ["run", "tmp", "var"] {
        make(name)?;
    }
    symlink("../run", root.join("var/run")).context("cannot make the link var/run")?;
    let agent = root.join(AGENT);
    cargo::run(
        Command::new("strip")
            .arg("--strip-all")
            .arg("-o")
            .arg(&agent)
            .arg(program),
    )?;
    Ok(agent)
}

/// The storage is our own: the machine's images stay as they are.
fn build(dir: &Path, context: &Path, archive: &Path) -> anyhow::Result<()> {
    let buildah = || {
        let mut command = Command::new("buildah");
        command
            .args(["--storage-driver", "vfs"])
            .arg("--root")
            .arg(dir.join("storage"))
            .arg("--runroot")
            .arg(dir.join("run"));
        command
    };
    let tag = format!("localhost/{AGENT}:{}", env!("CARGO_PKG_VERSION"));
    let (revision, seconds, time) = commit();
    let argument = |name: &str, value: &str| format!("{name}={value}");
    let mut build = buildah();
    build
        .args(["build", "--quiet", "--pull-never", "--isolation", "chroot"])
        // The same commit makes the same image.
        .args(["--timestamp", &seconds, "--format", "oci"])
        .args([
            "--build-arg",
            &argument("VERSION", env!("CARGO_PKG_VERSION")),
        ])
        .args(["--build-arg", &argument("REVISION", &revision)])
        .args(["--build-arg", &argument("CREATED", &time)])
        .args(["--tag", &tag, "--file"])
        .arg(cargo::workspace().join("deploy/image/Containerfile"))
        .arg(context);
    cargo::run(&mut build)?;
    let _ = fs::remove_file(archive);
    let to = format!("oci-archive:{}:{tag}", archive.display());
    cargo::run(buildah().args(["push", "--quiet", &tag, &to]))
}

/// The commit that is built: its name, and when it was made, in seconds and as RFC 3339 has it.
/// Without git, as in a source archive, nothing and the epoch.
fn commit() -> (String, String, String) {
    let told = Command::new("git")
        .args(["log", "-1", "--format=%H %ct %cI"])
        .current_dir(cargo::workspace())
        .output();
    let text = told
        .ok()
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .unwrap_or_default();
    match text.split_whitespace().collect::<Vec<_>>()[..] {
        [name, seconds, time] => (name.into(), seconds.into(), time.into()),
        _ => (String::new(), "0".into(), "1970-01-01T00:00:00Z".into()),
    }
}
