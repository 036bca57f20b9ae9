//! Building `bpf-linker`.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use ebpf_build::{Compiler, tools_dir};

use crate::cargo::cargo;

/// The version that is known to work.
const VERSION: &str = "0.13.0";

/// The LLVM releases that this version can be built for (its features `llvm-N`).
const LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// Builds it into the tools directory against the very LLVM library that the compiler uses:
/// nothing else of LLVM need be installed, and the two agree by construction.
pub fn install(compiler: &Compiler) -> anyhow::Result<()> {
    if !LLVM.contains(&compiler.llvm) {
        bail!(
            "bpf-linker {VERSION} cannot be built for LLVM {}, which rustc {} has; put a newer \
             bpf-linker on PATH by hand",
            compiler.llvm,
            compiler.release
        );
    }
    let library = llvm_library(compiler)?;
    let tools = tools_dir()?;
    // bpf-linker's build script wants a directory with `lib/libLLVM.so`.
    let prefix = tools.join("llvm");
    link(&library, &prefix.join("lib/libLLVM.so"))?;

    let runpath = library.parent().unwrap_or(Path::new("/"));
    let mut install = cargo(&[
        "install",
        "bpf-linker",
        "--version",
        VERSION,
        "--locked",
        "--force",
    ]);
    install
        .args([
            "--no-default-features",
            "--features",
            &format!("llvm-{}", compiler.llvm),
        ])
        .arg("--root")
        .arg(&tools)
        .env("LLVM_PREFIX", &prefix)
        .env(
            "RUSTFLAGS",
            format!("-Clink-arg=-Wl,-rpath,{}", runpath.display()),
        )
        // Cargo's own temporary one, which it removes.
        .env_remove("CARGO_TARGET_DIR");
    super::step(&mut install)
}

/// The shared library of LLVM that `compiler` loads: rustup ships it beside the compiler, a
/// distribution has it where all its libraries are.
fn llvm_library(compiler: &Compiler) -> anyhow::Result<PathBuf> {
    let lib = compiler.sysroot.join("lib");
    let multiarch = lib.join(format!("{}-linux-gnu", std::env::consts::ARCH));
    let dirs = [lib, multiarch, compiler.sysroot.join("lib64")];
    let names = [
        format!("libLLVM.so.{}", compiler.llvm),
        format!("libLLVM-{}.so", compiler.llvm),
    ];
    for dir in &dirs {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if names
                .iter()
                .any(|prefix| name.to_string_lossy().starts_with(prefix))
            {
                return Ok(entry.path());
            }
        }
    }
    bail!(
        "cannot find the LLVM {} library of {compiler}: neither {} nor {} in {}",
        compiler.llvm,
        names[0],
        names[1],
        dirs.each_ref()
            .map(|dir| dir.display().to_string())
            .join(", ")
    )
}

/// Makes `at` a symbolic link to `target`, whatever it was before.
fn link(target: &Path, at: &Path) -> anyhow::Result<()> {
    if let Some(dir) = at.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    if at.symlink_metadata().is_ok() {
        fs::remove_file(at).with_context(|| format!("cannot remove {}", at.display()))?;
    }
    symlink(target, at).with_context(|| format!("cannot create {}", at.display()))
}
