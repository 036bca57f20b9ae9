//! What checking for another machine needs. The library of Rust is compiled along, by the compiler that
//! does so for the BPF programs; one dependency (`blake3`) has parts in C.

use std::{env::consts::ARCH, ffi::OsStr};

use super::{apt, fuzzing::version};
use crate::cross::ARM;

/// The compiler that the build script of `blake3` calls.
fn program() -> &'static str {
    if ARCH == ARM {
        "cc"
    } else {
        "aarch64-linux-gnu-gcc"
    }
}

pub fn find() -> anyhow::Result<String> {
    version(OsStr::new(program()))
}

pub fn install() -> anyhow::Result<()> {
    let package = if ARCH == ARM {
        "gcc"
    } else {
        "gcc-aarch64-linux-gnu"
    };
    apt::install(&[package], || true)
}
