//! Debian's packages.

use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

/// Installs packages, fetching the package lists first when they lack one of them or when
/// `fresh` says that what they offer will not do.
///
/// # Errors
/// Without `apt-get` or without root: with the command to run by hand.
pub fn install(packages: &[&str], fresh: impl Fn() -> bool) -> anyhow::Result<()> {
    let by_hand = format!("apt-get install {}", packages.join(" "));
    if !exists() {
        bail!(
            "there is no apt-get here; install by hand what Debian has as: {}",
            packages.join(" ")
        );
    }
    if !is_root() {
        bail!("only root can install packages; run as root: {by_hand}");
    }
    if !fresh() || packages.iter().any(|package| candidate(package).is_none()) {
        super::step(&mut apt_get(&["update", "-qq"]))?;
    }
    let mut install = apt_get(&["install", "-qq", "-y", "--no-install-recommends"]);
    // dpkg's own messages, a line or more for each package, are for its log.
    super::step(install.args(packages).stdout(Stdio::null()))
        .with_context(|| format!("try it by hand, as root: {by_hand}"))
}

/// Whether this is a system with Debian's package manager.
pub fn exists() -> bool {
    Command::new("apt-get")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The version of a package that would be installed, if the package lists have one.
pub fn candidate(package: &str) -> Option<String> {
    let output = Command::new("apt-cache")
        .args(["policy", package])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

fn apt_get(args: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null());
    command
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output();
    id.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}
