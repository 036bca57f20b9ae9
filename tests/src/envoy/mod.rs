//! A real, unmodified Envoy with an Istio-like configuration, as an unprivileged process in the
//! workload's namespace and cgroup.

mod access;
mod bootstrap;
mod builder;
mod process;
mod resources;
mod stats;
mod userns;

use std::path::PathBuf;

use anyhow::{Context as _, ensure};

pub use access::Access;
pub use bootstrap::{Binds, Bootstrap, INBOUND_PORT, OUTBOUND_PORT};
pub use builder::EnvoyBuilder;
pub use process::Envoy;
pub use stats::Stats;
pub use userns::UserNamespace;

/// Istio's user and group of the proxy.
pub const PROXY_ID: u32 = 1337;

/// The program that `cargo xtask setup` has installed.
///
/// # Errors
/// When it is not there.
pub fn program() -> anyhow::Result<PathBuf> {
    let program = ebpf_build::tools_dir()?.join("bin/envoy");
    let found = program
        .try_exists()
        .with_context(|| format!("cannot look for {}", program.display()))?;
    ensure!(
        found,
        "{} is not there; `cargo xtask setup` installs it",
        program.display()
    );
    Ok(program)
}

/// Skips the running test unless it is root's and Envoy is there.
#[macro_export]
macro_rules! require_envoy {
    () => {
        $crate::require_root!();
        if let Err(error) = $crate::envoy::program() {
            $crate::skip!("Envoy: {error:#}");
        }
    };
}
