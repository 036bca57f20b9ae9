//! `cargo xtask lint`.

use ebpf_build::DENY_WARNINGS_ENV;

use crate::{cargo, setup};

/// Checks the formatting of every crate, and all crates but the BPF programs with clippy. The
/// programs would need the clippy of the very compiler that builds them; instead clippy's run of
/// the agent's build script builds them, with the compiler's warnings being errors.
pub fn run() -> anyhow::Result<()> {
    cargo::run(&mut cargo::cargo(&["fmt", "--all", "--check"]))?;
    setup::ensure()?;
    cargo::run(
        cargo::cargo(&[
            "clippy",
            "--workspace",
            "--exclude",
            "sidecar-ebpf",
            "--all-targets",
        ])
        .args(["--", "-D", "warnings"])
        .env(DENY_WARNINGS_ENV, "1"),
    )
}
