//! What checking for another machine needs. The library of Rust is compiled along, by the compiler that
//! does so for the BPF programs; dependencies (`blake3`, `ring`) have parts in C.

use std::{env::consts::ARCH, ffi::OsStr, process::Command};

use anyhow::{Context as _, ensure};

use super::{apt, fuzzing::version};
use crate::cross::ARM;

/// The compiler that their build scripts call.
fn program() -> &'static str {
    if ARCH == ARM {
        "cc"
    } else {
        "aarch64-linux-gnu-gcc"
    }
}

pub fn find() -> anyhow::Result<String> {
    let mut compile = Command::new(program());
    compile.args("-E -include string.h -x c -o /dev/null /dev/null".split(' '));
    let output = compile
        .output()
        .with_context(|| format!("cannot run {}", program()))?;
    ensure!(
        output.status.success(),
        "it has no headers of the C library"
    );
    version(OsStr::new(program()))
}

pub fn install() -> anyhow::Result<()> {
    let packages: &[&str] = if ARCH == ARM {
        &["gcc", "libc6-dev"]
    } else {
        &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"]
    };
    apt::install(packages, || true)
}
