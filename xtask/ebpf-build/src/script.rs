//! The agent's build script.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

use crate::{
    Toolchain,
    compiler::RUSTC_ENV,
    linker::{LINKER_ENV, TOOLS_ENV},
    objects::{Build, Endian, place},
};

/// When set (or `CI` is), a warning of the compiler about the BPF programs fails the build.
pub const DENY_WARNINGS_ENV: &str = "SIDECAR_DENY_WARNINGS";

/// What the objects are made of, relative to the workspace.
const SOURCES: [&str; 6] = [
    "Cargo.lock",
    "Cargo.toml",
    "sidecar-common/Cargo.toml",
    "sidecar-common/src",
    "sidecar-ebpf/Cargo.toml",
    "sidecar-ebpf/src",
];

/// Builds the objects into the build script's `OUT_DIR` and sets `SIDECAR_EBPF_CGROUP`,
/// `SIDECAR_EBPF_NETNS` and `SIDECAR_EBPF_ACCELERATE`, their paths, for the crate's `env!`.
///
/// # Errors
/// When no toolchain is found or the programs do not compile; in CI also when the compiler warns.
pub fn build() -> anyhow::Result<()> {
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    let manifest = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let workspace = manifest
        .parent()
        .context("the package lies in no workspace")?;
    for source in SOURCES {
        rerun_if_changed(&workspace.join(source));
    }
    for name in [RUSTC_ENV, LINKER_ENV, TOOLS_ENV, DENY_WARNINGS_ENV, "CI"] {
        println!("cargo:rerun-if-env-changed={name}");
    }

    let toolchain = Toolchain::find()?;
    rerun_if_changed(&toolchain.compiler.rustc);
    rerun_if_changed(&toolchain.linker.path);

    let objects = Build {
        workspace,
        // Not the outer cargo's: it holds the lock of that one until we are done.
        target_dir: &out_dir.join("target"),
        endian: match variable("CARGO_CFG_TARGET_ENDIAN")?.as_str() {
            "big" => Endian::Big,
            _ => Endian::Little,
        },
        arch: &variable("CARGO_CFG_TARGET_ARCH")?,
    }
    .run(&toolchain)?;

    if !objects.warnings.is_empty() && is_set(DENY_WARNINGS_ENV) | is_set("CI") {
        bail!(
            "the compiler warns about the BPF programs:\n{}",
            objects.warnings.join("\n")
        );
    }
    for line in objects.warnings.iter().flat_map(|warning| warning.lines()) {
        println!("cargo:warning={line}");
    }
    for (name, object) in [
        ("SIDECAR_EBPF_CGROUP", &objects.cgroup),
        ("SIDECAR_EBPF_NETNS", &objects.netns),
        ("SIDECAR_EBPF_ACCELERATE", &objects.accelerate),
    ] {
        let kept = out_dir.join(name.to_lowercase()).with_extension("o");
        place(object, &kept)?;
        println!("cargo:rustc-env={name}={}", kept.display());
    }
    Ok(())
}

fn variable(name: &str) -> anyhow::Result<String> {
    env::var(name).with_context(|| format!("{name} is not set: this is for a build script"))
}

/// Set and neither empty nor `false` or `0`.
fn is_set(name: &str) -> bool {
    env::var(name).is_ok_and(|value| !matches!(value.as_str(), "" | "0" | "false"))
}

fn rerun_if_changed(path: &Path) {
    println!("cargo:rerun-if-changed={}", path.display());
}
