//! Which `bpf-linker` to link with.

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, anyhow, bail};

use crate::compiler::{Compiler, output};

/// Environment variable with the path of the `bpf-linker` to use, before anything is searched for.
pub const LINKER_ENV: &str = "SIDECAR_BPF_LINKER";

/// Environment variable with the directory that `cargo xtask setup` installs tools into.
pub const TOOLS_ENV: &str = "SIDECAR_TOOLS_DIR";

/// The project's own tools: `$SIDECAR_TOOLS_DIR`, else `sidecar-agent/tools` in the user's cache
/// directory (`$XDG_CACHE_HOME`, else `~/.cache`). Programs are in its `bin`.
///
/// # Errors
/// When none of these variables is set.
pub fn tools_dir() -> anyhow::Result<PathBuf> {
    let set = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(dir) = set(TOOLS_ENV) {
        return Ok(dir);
    }
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    Ok(cache
        .with_context(|| format!("none of {TOOLS_ENV}, XDG_CACHE_HOME and HOME is set"))?
        .join("sidecar-agent/tools"))
}

/// A `bpf-linker` that runs.
#[derive(Clone, Debug)]
pub struct Linker {
    /// Its path.
    pub path: PathBuf,
    /// What `--version` prints, for example `bpf-linker 0.13.0`.
    pub version: String,
    /// Major version of the LLVM library it loads; `None` when LLVM is linked in.
    pub llvm: Option<u32>,
}

impl Linker {
    /// The first of: [`LINKER_ENV`], [`tools_dir`]`/bin`, `PATH`, that runs and reads the bitcode
    /// of `compiler`.
    ///
    /// # Errors
    /// When there is none: why each candidate was refused, and the remedy.
    pub fn find(compiler: &Compiler) -> anyhow::Result<Self> {
        if let Some(path) = env::var_os(LINKER_ENV) {
            return Self::inspect(path.into(), compiler)
                .with_context(|| format!("{LINKER_ENV} names a linker that cannot be used"));
        }
        let path = env::var_os("PATH").unwrap_or_default();
        let dirs = tools_dir()
            .map(|dir| dir.join("bin"))
            .into_iter()
            .chain(env::split_paths(&path));
        let mut refused = Vec::new();
        for candidate in dirs
            .map(|dir| dir.join("bpf-linker"))
            .filter(|path| path.exists())
        {
            match Self::inspect(candidate, compiler) {
                Ok(linker) => return Ok(linker),
                Err(why) => refused.push(format!("\n  {why:#}")),
            }
        }
        Err(anyhow!(
            "no bpf-linker found for LLVM {}, neither in the project's tools nor on PATH.{}\n\
             Run `cargo xtask setup`, or put one on PATH, or name it in {LINKER_ENV}.",
            compiler.llvm,
            refused.concat()
        ))
    }

    fn inspect(path: PathBuf, compiler: &Compiler) -> anyhow::Result<Self> {
        let version = output(Command::new(&path).arg("--version"))?
            .trim()
            .to_owned();
        let llvm = llvm_of(&path)?;
        // LLVM reads the bitcode of older releases, never of newer ones.
        if let Some(llvm) = llvm
            && llvm < compiler.llvm
        {
            bail!(
                "{} uses LLVM {llvm}, which cannot read what rustc {} with LLVM {} writes",
                path.display(),
                compiler.release,
                compiler.llvm
            );
        }
        Ok(Self {
            path,
            version,
            llvm,
        })
    }
}

impl fmt::Display for Linker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.version)?;
        if let Some(llvm) = self.llvm {
            write!(f, " (LLVM {llvm})")?;
        }
        write!(f, ": {}", self.path.display())
    }
}

/// `bpf-linker` does not tell its LLVM, but the name of the library it loads is in the file.
fn llvm_of(linker: &Path) -> anyhow::Result<Option<u32>> {
    let bytes = fs::read(linker).with_context(|| format!("cannot read {}", linker.display()))?;
    Ok(llvm_in(&bytes))
}

/// The major version in the first `libLLVM.so.22.1` or `libLLVM-22.so`.
fn llvm_in(bytes: &[u8]) -> Option<u32> {
    [b"libLLVM.so.".as_slice(), b"libLLVM-"]
        .iter()
        .find_map(|name| {
            let at = bytes
                .windows(name.len())
                .position(|window| window == *name)?;
            let digits: String = bytes
                .get(at + name.len()..)?
                .iter()
                .map_while(|&byte| byte.is_ascii_digit().then_some(char::from(byte)))
                .collect();
            digits.parse().ok()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_is_read_from_the_name_of_the_library() {
        assert_eq!(llvm_in(b"\0libc.so.6\0libLLVM.so.22.1\0"), Some(22));
        assert_eq!(llvm_in(b"\0libLLVM-21.so\0"), Some(21));
        assert_eq!(
            llvm_in(b"\0libLLVM.so.22.1-rust-1.97.0-nightly\0"),
            Some(22)
        );
        assert_eq!(llvm_in(b"\0libLLVM-C\0libc.so.6"), None);
    }
}
