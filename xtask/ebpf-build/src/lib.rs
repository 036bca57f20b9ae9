//! Finds a compiler and a linker for the bpf target and builds `sidecar-ebpf` with them.
//!
//! Two callers: the agent's build script ([`build`]), so that a plain `cargo build` makes a
//! complete agent, and `cargo xtask`, which also installs what is missing.
//!
//! No toolchain carries a ready-made `core` for `bpfel-unknown-none`, so `core` is compiled along
//! (`-Zbuild-std`), which needs the compiler's own library source beside it.

mod compiler;
mod linker;
mod objects;
mod script;

pub use compiler::{Compiler, RUSTC_ENV, Source};
pub use linker::{LINKER_ENV, Linker, TOOLS_ENV, tools_dir};
pub use objects::{Build, Endian, Objects};
pub use script::{DENY_WARNINGS_ENV, build};

/// What builds for the bpf target: a compiler, and a linker that understands its bitcode.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// The compiler.
    pub compiler: Compiler,
    /// The linker.
    pub linker: Linker,
}

impl Toolchain {
    /// Finds both.
    ///
    /// # Errors
    /// When either is missing; the message says how to install it.
    pub fn find() -> anyhow::Result<Self> {
        let compiler = Compiler::find()?;
        let linker = Linker::find(&compiler)?;
        Ok(Self { compiler, linker })
    }
}
