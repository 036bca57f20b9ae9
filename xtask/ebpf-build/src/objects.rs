//! Builds the object files.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, bail};
use serde::Deserialize;

use crate::Toolchain;

/// The package with the programs.
const PACKAGE: &str = "sidecar-ebpf";

/// How many lines of the compiler's errors are repeated in ours.
const SHOWN_LINES: usize = 60;

/// Byte order of the kernel that will load the objects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Endian {
    /// `bpfel-unknown-none`.
    Little,
    /// `bpfeb-unknown-none`.
    Big,
}

impl Endian {
    /// That of the machine this runs on.
    #[must_use]
    pub const fn host() -> Self {
        if cfg!(target_endian = "big") {
            Self::Big
        } else {
            Self::Little
        }
    }

    /// The compiler's name for it.
    #[must_use]
    pub const fn target(self) -> &'static str {
        match self {
            Self::Little => "bpfel-unknown-none",
            Self::Big => "bpfeb-unknown-none",
        }
    }
}

/// One build of the objects.
#[derive(Clone, Copy, Debug)]
pub struct Build<'a> {
    /// Root of the workspace.
    pub workspace: &'a Path,
    /// Cargo's target directory for this build. Not one that a cargo which waits for us is using:
    /// cargo locks it.
    pub target_dir: &'a Path,
    /// Byte order of the target.
    pub endian: Endian,
    /// Architecture that loads the objects, as Rust names it (`x86_64`): it decides the layout of
    /// the kernel's `pt_regs` in `aya-ebpf`.
    pub arch: &'a str,
}

/// What a build made.
#[derive(Debug)]
pub struct Objects {
    /// What is attached to a workload's cgroup.
    pub cgroup: PathBuf,
    /// What is attached to its network namespace.
    pub netns: PathBuf,
    /// What accelerates connections to proxies.
    pub accelerate: PathBuf,
    /// The compiler's warnings about packages of the workspace, as it printed them.
    pub warnings: Vec<String>,
}

impl Build<'_> {
    /// Builds the objects.
    ///
    /// # Errors
    /// With the first lines of the compiler's errors when they do not compile.
    pub fn run(&self, toolchain: &Toolchain) -> anyhow::Result<Objects> {
        let mut command = self.command(toolchain);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", command.get_program().display()))?;
        let stderr = child.stderr.take().context("cargo has no stderr")?;
        let stdout = child.stdout.take().context("cargo has no stdout")?;
        let progress = thread::spawn(move || -> Vec<String> {
            BufReader::new(stderr)
                .lines()
                .map_while(Result::ok)
                .collect()
        });
        let mut report = Report::default();
        for line in BufReader::new(stdout).lines() {
            report.read(&line.context("cannot read cargo's messages")?);
        }
        let status = child.wait().context("cannot wait for cargo")?;
        let progress = progress.join().unwrap_or_default();
        if !status.success() {
            // Cargo's own complaints (a lock file out of date, say) are on stderr only.
            let complaints = progress.into_iter().filter(|line| !is_progress(line));
            let lines: Vec<String> = (report.errors.iter())
                .flat_map(|error| error.lines().map(str::to_owned))
                .chain(complaints)
                .collect();
            bail!(
                "cannot build the BPF programs ({PACKAGE}) with {}:\n{}{}",
                toolchain.compiler,
                lines[..lines.len().min(SHOWN_LINES)].join("\n"),
                if lines.len() > SHOWN_LINES {
                    "\n..."
                } else {
                    ""
                }
            );
        }
        let mut object = |name: &str| {
            report
                .executables
                .remove(name)
                .with_context(|| format!("{PACKAGE} has no binary named {name}"))
        };
        Ok(Objects {
            cgroup: object("cgroup")?,
            netns: object("netns")?,
            accelerate: object("accelerate")?,
            warnings: report.warnings,
        })
    }

    fn command(&self, toolchain: &Toolchain) -> Command {
        let mut command = toolchain.compiler.command();
        let flags = [
            // Full debug information of every crate: BTF is made from it.
            "-Cdebuginfo=2".to_owned(),
            "-Clink-arg=--btf".to_owned(),
            // Else every small copy is a call, whose frame counts as 32 bytes of the 512 that
            // older kernels let a program and what it calls have.
            "-Clink-arg=--disable-expand-memcpy-in-order".to_owned(),
            format!("-Clinker={}", toolchain.linker.path.display()),
            format!("--cfg=bpf_target_arch=\"{}\"", self.arch),
        ];
        command
            .current_dir(self.workspace)
            .args([
                "build",
                "--locked",
                "--package",
                PACKAGE,
                "--bins",
                "--release",
            ])
            .args(["--target", self.endian.target(), "-Zbuild-std=core"])
            .args(["--message-format=json", "--target-dir"])
            .arg(self.target_dir)
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        command
    }
}

/// A line like `   Compiling core v0.0.0`.
fn is_progress(line: &str) -> bool {
    let verb = line.split_whitespace().next().unwrap_or_default();
    line.starts_with(' ') && verb.ends_with("ing") || matches!(verb, "Downloaded" | "Finished")
}

/// What cargo said on stdout, one JSON object a line.
#[derive(Default)]
struct Report {
    executables: BTreeMap<String, PathBuf>,
    warnings: Vec<String>,
    errors: Vec<String>,
}

/// The parts of cargo's messages that are read here.
#[derive(Deserialize)]
#[serde(tag = "reason")]
enum Message {
    #[serde(rename = "compiler-artifact")]
    Built {
        target: Target,
        executable: Option<PathBuf>,
    },
    #[serde(rename = "compiler-message")]
    Diagnosed {
        package_id: String,
        message: Diagnostic,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

#[derive(Deserialize)]
struct Diagnostic {
    level: String,
    rendered: Option<String>,
}

impl Report {
    fn read(&mut self, line: &str) {
        match serde_json::from_str(line) {
            Ok(Message::Built {
                target,
                executable: Some(executable),
            }) => {
                self.executables.insert(target.name, executable);
            }
            Ok(Message::Diagnosed {
                package_id,
                message,
            }) => {
                let text = message.rendered.unwrap_or_default();
                if message.level.starts_with("error") {
                    self.errors.push(text);
                } else if message.level == "warning"
                    && package_id.starts_with("path+")
                    && !is_sum(&text)
                {
                    self.warnings.push(text);
                }
            }
            // Anything else is of no interest, and a build script may print what it likes.
            Ok(_) | Err(_) => {}
        }
    }
}

/// `warning: 2 warnings emitted`.
fn is_sum(text: &str) -> bool {
    text.trim_end().ends_with("emitted")
}

/// Copies an object to where it stays, and only if it differs, so that what embeds it is not
/// rebuilt for nothing.
pub(crate) fn place(object: &Path, to: &Path) -> anyhow::Result<()> {
    let new = fs::read(object).with_context(|| format!("cannot read {}", object.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    fs::write(to, new).with_context(|| format!("cannot write {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_messages_are_sorted() {
        let mut report = Report::default();
        report.read(
            r#"{"reason":"compiler-artifact","target":{"name":"cgroup"},"executable":"/t/cgroup"}"#,
        );
        report.read(r#"{"reason":"compiler-artifact","target":{"name":"core"},"executable":null}"#);
        for (level, text) in [
            ("warning", "warning: unused variable"),
            ("warning", "warning: 1 warning emitted"),
            ("error", "error: mismatched types"),
        ] {
            report.read(&format!(
                r#"{{"reason":"compiler-message","package_id":"path+file:///w/sidecar-ebpf#0.1.0","message":{{"level":"{level}","rendered":"{text}"}}}}"#
            ));
        }
        report.read(
            r#"{"reason":"compiler-message","package_id":"registry+x#y@1","message":{"level":"warning","rendered":"theirs"}}"#,
        );
        report.read("not JSON");
        assert_eq!(report.executables["cgroup"], Path::new("/t/cgroup"));
        assert_eq!(report.executables.len(), 1);
        assert_eq!(report.warnings, ["warning: unused variable"]);
        assert_eq!(report.errors, ["error: mismatched types"]);
    }

    #[test]
    fn progress_is_told_from_complaints() {
        assert!(is_progress("   Compiling core v0.0.0"));
        assert!(!is_progress("error: the lock file needs to be updated"));
        assert!(!is_progress("  Caused by: x"));
    }
}
