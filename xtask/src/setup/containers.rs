//! What builds the container image, and what runs it.

use std::{ffi::OsStr, process::Command};

use anyhow::bail;

use super::{apt, compiler::rustup, fuzzing::version, programs::is_there, step};
use crate::artifacts::{has_target, musl_target};

/// The compiler of C that links with musl: some dependencies have parts in C.
const MUSL_CC: &str = "musl-gcc";

/// A compiler without the target is no reason to fail: the agent is linked with glibc then.
pub fn find_musl() -> anyhow::Result<String> {
    let target = musl_target();
    if !has_target(&target) {
        if is_there(OsStr::new("rustup")) {
            bail!(
                "the compiler has no standard library for {target}: `rustup target add {target}`"
            );
        }
        return Ok("none, as there is no rustup; glibc is linked in".to_owned());
    }
    if !is_there(OsStr::new(MUSL_CC)) {
        bail!("{MUSL_CC} not found (Debian's package musl-tools)");
    }
    Ok(format!("{target}, {MUSL_CC}"))
}

pub fn install_musl() -> anyhow::Result<()> {
    let target = musl_target();
    if !has_target(&target) {
        step(rustup().args(["target", "add", &target]))?;
    }
    apt::install(&["musl-tools"], || true)
}

pub fn find_buildah() -> anyhow::Result<String> {
    version(OsStr::new("buildah"))
}

pub fn install_buildah() -> anyhow::Result<()> {
    apt::install(&["buildah"], || true)
}

pub fn find_podman() -> anyhow::Result<String> {
    let podman = version(OsStr::new("podman"))?;
    // Not crun, which wants control groups of version 2 alone.
    Ok(format!("{podman}, {}", version(&runc())?))
}

fn runc() -> std::ffi::OsString {
    let root = "/usr/sbin/runc";
    match Command::new("runc").arg("--version").output() {
        Err(_) => root.into(),
        Ok(_) => "runc".into(),
    }
}

pub fn install_podman() -> anyhow::Result<()> {
    apt::install(&["podman", "runc"], || true)
}
