//! Which `rustc` can build `core` for the bpf target.

use std::{
    env,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, anyhow, bail};

/// Environment variable with the path of the `rustc` to use, before anything is searched for.
pub const RUSTC_ENV: &str = "SIDECAR_EBPF_RUSTC";

/// Where Debian's `rustc-web` puts its compiler.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// The oldest compiler for the workspace (`rust-version` in its `Cargo.toml`).
const MINIMUM: &str = env!("CARGO_PKG_RUST_VERSION");

/// How to get a compiler, printed when there is none.
const RECIPES: &str = "\
Run `cargo xtask setup`, or install one of:
  rustup:  rustup toolchain install nightly --profile minimal --component rust-src
  Debian:  apt-get install rustc-web rust-web-src
or name a rustc that has its library source beside it in SIDECAR_EBPF_RUSTC.";

/// Where a [`Compiler`] was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// Named by [`RUSTC_ENV`].
    Override,
    /// The `nightly` toolchain of rustup, with its component `rust-src`.
    Nightly,
    /// Debian's packages `rustc-web` and `rust-web-src`.
    Debian,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Override => RUSTC_ENV,
            Self::Nightly => "rustup's nightly",
            Self::Debian => "Debian's rustc",
        })
    }
}

/// A `rustc` that has the source of its own `core`.
#[derive(Clone, Debug)]
pub struct Compiler {
    /// Its path.
    pub rustc: PathBuf,
    /// Where it was found.
    pub source: Source,
    /// `rustc --print sysroot`.
    pub sysroot: PathBuf,
    /// Its release, for example `1.96.0` or `1.97.0-nightly`.
    pub release: String,
    /// Major version of its LLVM.
    pub llvm: u32,
}

impl Compiler {
    /// The first of: [`RUSTC_ENV`], rustup's nightly, Debian's `/usr/bin/rustc`, that is recent
    /// enough for the workspace and has its library source.
    ///
    /// # Errors
    /// When there is none: why each candidate was refused, and how to install one. A compiler
    /// named by [`RUSTC_ENV`] is never replaced by another.
    pub fn find() -> anyhow::Result<Self> {
        if let Some(rustc) = env::var_os(RUSTC_ENV) {
            return Self::inspect(rustc.into(), Source::Override)
                .with_context(|| format!("{RUSTC_ENV} names a compiler that cannot be used"));
        }
        let mut refused = Vec::new();
        match nightly() {
            Ok(rustc) => match Self::inspect(rustc, Source::Nightly) {
                Ok(compiler) => return Ok(compiler),
                Err(why) => refused.push(format!("{}: {why:#}", Source::Nightly)),
            },
            Err(why) => refused.push(format!("{}: {why:#}", Source::Nightly)),
        }
        match Self::inspect(DEBIAN_RUSTC.into(), Source::Debian) {
            Ok(compiler) => return Ok(compiler),
            Err(why) => refused.push(format!("{}: {why:#}", Source::Debian)),
        }
        Err(anyhow!(
            "no compiler here can build for the bpf target:\n  {}\n{RECIPES}",
            refused.join("\n  ")
        ))
    }

    fn inspect(rustc: PathBuf, source: Source) -> anyhow::Result<Self> {
        let (release, llvm) = parse_version(&output(Command::new(&rustc).arg("-vV"))?)
            .with_context(|| {
                format!(
                    "cannot read the version that {} -vV prints",
                    rustc.display()
                )
            })?;
        if !Self::is_recent(&release) {
            bail!(
                "{} is {release}, and {MINIMUM} is the oldest that will do",
                rustc.display()
            );
        }
        let sysroot =
            PathBuf::from(output(Command::new(&rustc).args(["--print", "sysroot"]))?.trim_end());
        let lock = sysroot.join("lib/rustlib/src/rust/library/Cargo.lock");
        if !lock.exists() {
            bail!(
                "{} has no library source: {} is missing",
                rustc.display(),
                lock.display()
            );
        }
        Ok(Self {
            rustc,
            source,
            sysroot,
            release,
            llvm,
        })
    }

    /// Whether a release (or a package's version that begins with it, `1.96.0+dfsg1`) can build
    /// this workspace.
    #[must_use]
    pub fn is_recent(release: &str) -> bool {
        !older(release, MINIMUM)
    }

    /// A cargo that builds with this compiler whatever cargo has started us, and takes `-Z` options,
    /// such as `-Zbuild-std` for targets of which it has no ready-made library.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(self.cargo());
        for (name, _) in env::vars_os() {
            if name.to_str().is_some_and(describes_outer_build) {
                command.env_remove(name);
            }
        }
        command
            .env("RUSTC", &self.rustc)
            // -Z is for nightlies; this makes every compiler and cargo take it.
            .env("RUSTC_BOOTSTRAP", "1")
            // Empty rather than unset: a wrapper in the user's cargo configuration is off as well.
            .env("RUSTC_WRAPPER", "")
            .env("RUSTC_WORKSPACE_WRAPPER", "");
        command
    }

    /// The cargo to drive this compiler with: a rustup toolchain's own, which is sure to read the
    /// manifests of that toolchain's library; otherwise the cargo that runs us (a distribution's
    /// is often too old for this workspace).
    #[must_use]
    pub fn cargo(&self) -> PathBuf {
        let own = self.sysroot.join("bin/cargo");
        if self.sysroot != Path::new("/usr") && own.exists() {
            return own;
        }
        env::var_os("CARGO")
            .unwrap_or_else(|| OsString::from("cargo"))
            .into()
    }
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rustc,
            source,
            release,
            llvm,
            ..
        } = self;
        write!(
            f,
            "rustc {release} (LLVM {llvm}) from {source}: {}",
            rustc.display()
        )
    }
}

/// Whether an environment variable tells something of the build or the toolchain that we were
/// started by. Kept: where cargo and rustup live, the network and the terminal settings, and the
/// job server, so that the two builds together keep to its number of jobs.
fn describes_outer_build(name: &str) -> bool {
    const KEPT: [&str; 6] = ["HOME", "NET_", "HTTP_", "REGISTR", "TERM_", "MAKEFLAGS"];
    if let Some(rest) = name.strip_prefix("CARGO_") {
        return !KEPT.iter().any(|kept| rest.starts_with(kept));
    }
    (name.starts_with("RUST") && !matches!(name, "RUSTUP_HOME" | "RUST_BACKTRACE"))
        || matches!(name, "CARGO" | "CLIPPY_ARGS" | "CLIPPY_CONF_DIR")
        || matches!(
            name,
            "OUT_DIR" | "TARGET" | "HOST" | "PROFILE" | "OPT_LEVEL" | "DEBUG"
        )
}

/// Path of rustup's nightly `rustc`.
fn nightly() -> anyhow::Result<PathBuf> {
    let path = output(
        Command::new("rustup")
            .args(["which", "--toolchain", "nightly", "rustc"])
            // Finding must not install.
            .env("RUSTUP_AUTO_INSTALL", "0"),
    )?;
    Ok(PathBuf::from(path.trim_end()))
}

/// Release and LLVM major from the text of `rustc -vV`.
fn parse_version(text: &str) -> Option<(String, u32)> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let llvm = field("LLVM version: ")?.split('.').next()?.parse().ok()?;
    Some((field("release: ")?.to_owned(), llvm))
}

/// Whether `release` (`1.96.0-nightly`) is older than `minimum` (`1.95`).
fn older(release: &str, minimum: &str) -> bool {
    let numbers = |text: &str| -> Vec<u32> {
        text.split(['.', '-', '+'])
            .map_while(|part| part.parse().ok())
            .collect()
    };
    numbers(release) < numbers(minimum)
}

/// Standard output of a command that must succeed.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{} failed with {}: {}",
            command.get_program().display(),
            output.status,
            stderr.trim().lines().next().unwrap_or("it printed nothing")
        );
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("{} printed no UTF-8", command.get_program().display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_read() {
        let text = "rustc 1.96.0 (ac68faa20)\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(parse_version(text), Some(("1.96.0".to_owned(), 22)));
        assert_eq!(parse_version("rustc 1.96.0"), None);
    }

    #[test]
    fn the_outer_build_is_forgotten() {
        for name in [
            "CARGO_ENCODED_RUSTFLAGS",
            "RUSTFLAGS",
            "RUSTC",
            "RUSTC_WORKSPACE_WRAPPER",
            "CARGO",
        ] {
            assert!(describes_outer_build(name), "{name}");
        }
        for name in [
            "CARGO_HOME",
            "CARGO_MAKEFLAGS",
            "CARGO_NET_OFFLINE",
            "PATH",
            "RUSTUP_HOME",
        ] {
            assert!(!describes_outer_build(name), "{name}");
        }
    }

    #[test]
    fn releases_are_compared_as_numbers() {
        assert!(older("1.85.0", "1.95"));
        assert!(older("1.9.0", "1.95"));
        assert!(!older("1.95.0", "1.95"));
        assert!(!older("1.100.0-nightly", "1.95"));
    }

    #[test]
    fn a_compiler_without_source_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let rustc = dir.path().join("rustc");
        let script = format!(
            "#!/bin/sh\ncase $1 in -vV) echo release: 1.99.0; echo LLVM version: 22.1;;\n\
             *) echo {};; esac\n",
            dir.path().display()
        );
        write_executable(&rustc, &script);
        let refused = Compiler::inspect(rustc.clone(), Source::Override).unwrap_err();
        assert!(
            refused.to_string().contains("has no library source"),
            "{refused}"
        );

        let library = dir.path().join("lib/rustlib/src/rust/library");
        std::fs::create_dir_all(&library).unwrap();
        std::fs::write(library.join("Cargo.lock"), "").unwrap();
        assert_eq!(Compiler::inspect(rustc, Source::Override).unwrap().llvm, 22);
    }

    /// Through a shell: a file that this process wrote cannot be run while another thread's
    /// freshly forked child still holds it open for writing (ETXTBSY).
    fn write_executable(path: &Path, text: &str) {
        let status = Command::new("sh")
            .args(["-c", "printf %s \"$2\" > \"$1\" && chmod +x \"$1\"", "sh"])
            .arg(path)
            .arg(text)
            .status()
            .unwrap();
        assert!(status.success());
    }
}
