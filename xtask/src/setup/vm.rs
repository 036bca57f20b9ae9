//! What virtual machines are run with.

use std::ffi::OsStr;

use anyhow::bail;

use super::{apt, programs};
use crate::vm::qemu;

pub fn find_qemu() -> anyhow::Result<String> {
    qemu::find()
}

pub fn install_qemu() -> anyhow::Result<()> {
    apt::install(&["qemu-system-x86"], || true)
}

/// Programs that unpack kernels and pack what runs on them, and Debian's packages with them.
const TOOLS: [(&str, &str); 4] = [
    ("depmod", "kmod"),
    ("xz", "xz-utils"),
    ("strip", "binutils"),
    ("ldd", "libc-bin"),
];

fn missing() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
    static TABLE: &[(&str, &str)] = &TOOLS;
    TABLE
        .iter()
        .filter(|(name, _)| !programs::is_there(OsStr::new(name)))
}

pub fn find_tools() -> anyhow::Result<String> {
    let missing: Vec<String> = missing()
        .map(|(name, package)| format!("{name} (Debian's package {package})"))
        .collect();
    if !missing.is_empty() {
        bail!("not found: {}", missing.join("; "));
    }
    Ok(TOOLS.map(|(name, _)| name).join(", "))
}

pub fn install_tools() -> anyhow::Result<()> {
    let packages: Vec<&str> = missing().map(|(_, package)| *package).collect();
    apt::install(&packages, || true)
}
