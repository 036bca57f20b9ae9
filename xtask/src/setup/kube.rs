//! A real API server for the tests: what Kubernetes' own tests call their assets.

use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail, ensure};
use ebpf_build::tools_dir;

use super::{apt, programs, step, version};
use crate::vm::archive;

/// Says where they are, in Kubernetes' own tools too. Then nothing is built.
const ASSETS_ENV: &str = "KUBEBUILDER_ASSETS";

/// What is needed of them.
const ASSETS: [&str; 3] = ["etcd", "kube-apiserver", "kubectl"];

/// The release of Debian whose source package is built: Kubernetes 1.20, by Go 1.19.
const SUITE: &str = "bookworm";

/// What that takes.
const PACKAGES: [&str; 7] = [
    "dpkg-dev",
    "golang-github-modern-go-reflect2-dev",
    "golang-go",
    "jq",
    "make",
    "openssl",
    "rsync",
];

/// A vendored module that does not work with a Go as new as Debian's, and Debian's own of it.
const OLD_MODULE: &str = "vendor/github.com/modern-go/reflect2";
const NEW_MODULE: &str = "/usr/share/gocode/src/github.com/modern-go/reflect2";

/// Where they are, whoever has put them there.
fn dir() -> anyhow::Result<PathBuf> {
    let given = env::var_os(ASSETS_ENV).filter(|dir| !dir.is_empty());
    given.map_or_else(|| Ok(tools_dir()?.join("kube/bin")), |dir| Ok(dir.into()))
}

pub fn find() -> anyhow::Result<String> {
    let dir = dir()?;
    let missing: Vec<&str> = ASSETS
        .into_iter()
        .filter(|name| !dir.join(name).exists())
        .collect();
    if !missing.is_empty() {
        bail!("{} lacks {}", dir.display(), missing.join(", "));
    }
    ensure!(
        programs::is_there(OsStr::new("openssl")),
        "there is no openssl, which makes keys"
    );
    let server = version(dir.join("kube-apiserver").as_os_str())?;
    Ok(format!("{server}: {}", dir.display()))
}

/// Builds the API server and kubectl from Debian's source package, and takes etcd from Debian's
/// package, without installing it: it would be started. It takes ten minutes and 3 GB.
pub fn install() -> anyhow::Result<()> {
    if env::var_os(ASSETS_ENV).is_some_and(|dir| !dir.is_empty()) {
        bail!("{ASSETS_ENV} is set; what is missing there is not built");
    }
    apt::install(&PACKAGES, || true)?;
    let tools = tools_dir()?;
    fs::create_dir_all(&tools).with_context(|| format!("cannot make {}", tools.display()))?;
    let scratch = tempfile::tempdir_in(&tools).context("cannot make a directory")?;
    let apt = archive::with_sources(scratch.path(), SUITE)?;
    let apt_get = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .args(args)
            .env("APT_CONFIG", &apt)
            .current_dir(scratch.path());
        command
    };
    step(&mut apt_get(&["update", "-qq"]))?;
    step(&mut apt_get(&[
        "source",
        "-qq",
        "--only-source",
        "kubernetes",
    ]))?;
    step(&mut apt_get(&["download", "-qq", "etcd-server"]))?;

    let bin = tools.join("kube/bin");
    fs::create_dir_all(&bin).with_context(|| format!("cannot make {}", bin.display()))?;
    let deb = only(scratch.path(), |name| {
        name.starts_with("etcd-server") && has_extension(name, "deb")
    })?;
    let unpacked = scratch.path().join("etcd");
    step(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&unpacked))?;
    place(&unpacked.join("usr/bin/etcd"), &bin)?;

    let source = only(scratch.path(), |name| {
        name.starts_with("kubernetes-") && !name.contains(".tar")
    })?;
    let old = source.join(OLD_MODULE);
    fs::remove_dir_all(&old).with_context(|| format!("cannot remove {}", old.display()))?;
    step(Command::new("cp").arg("-rL").arg(NEW_MODULE).arg(&old))?;
    let mut make = Command::new("make");
    make.arg("WHAT=cmd/kube-apiserver cmd/kubectl")
        .current_dir(&source)
        .env("GOPROXY", "off")
        .env("GOFLAGS", "-mod=vendor")
        .env("CGO_ENABLED", "0")
        .env("GOCACHE", scratch.path().join("gocache"))
        .env("GOPATH", scratch.path().join("gopath"));
    step(&mut make)?;
    for name in ["kube-apiserver", "kubectl"] {
        place(&source.join("_output/bin").join(name), &bin)?;
    }
    Ok(())
}

fn has_extension(name: &str, extension: &str) -> bool {
    Path::new(name).extension() == Some(OsStr::new(extension))
}

/// The entry of a directory that has such a name.
fn only(dir: &Path, is_it: impl Fn(&str) -> bool) -> anyhow::Result<PathBuf> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    entries
        .flatten()
        .find(|entry| is_it(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
        .with_context(|| format!("apt has not put what was asked for into {}", dir.display()))
}

fn place(program: &Path, bin: &Path) -> anyhow::Result<()> {
    let name = program.file_name().context("a program without a name")?;
    let to = bin.join(name);
    fs::copy(program, &to)
        .with_context(|| format!("cannot copy {} to {}", program.display(), to.display()))?;
    Ok(())
}
