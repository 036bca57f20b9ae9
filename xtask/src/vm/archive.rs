//! Kernels among Debian's packages.
//!
//! The suites that have them are not those of the machine: apt reads them from a configuration of
//! our own, and touches nothing of the machine's. Where Debian is, the machine's own sources tell.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};

use super::versions::Version;
use crate::{cargo, setup::apt};

/// Suites of the main archive, and those of the archive of security updates. bullseye's updates
/// have 5.10, bookworm's 6.1, its backports 6.12, and trixie's backports the newest.
const MAIN: &str = "bookworm bookworm-backports trixie trixie-backports";
const SECURITY: &str = "bullseye-security bookworm-security trixie-security";

/// Where Debian's package `debian-archive-keyring` has the keys.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// How long package lists are good for.
const FRESH: Duration = Duration::from_hours(24);

/// A kernel that can be had.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offer {
    /// The kernel's version.
    pub version: Version,
    /// Its release, as `uname -r` will have it.
    pub release: String,
    /// The packages that it consists of.
    packages: Vec<String>,
}

/// apt, with package lists of its own.
pub struct Archive {
    config: PathBuf,
}

impl Archive {
    /// Fetches package lists into `dir` unless they are there and recent.
    ///
    /// # Errors
    /// When this is no Debian, or its archive cannot be reached.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        ensure!(apt::exists(), "there is no apt-get here");
        let archive = Self {
            config: dir.join("apt.conf"),
        };
        let stamp = dir.join("updated");
        let age = fs::metadata(&stamp)
            .and_then(|stamp| stamp.modified())
            .ok()
            .and_then(|at| at.elapsed().ok());
        if age.is_some_and(|age| age < FRESH) {
            return Ok(archive);
        }
        archive.configure(dir)?;
        cargo::run(archive.apt("apt-get").args(["update", "-qq"]))?;
        fs::write(&stamp, "").with_context(|| format!("cannot write {}", stamp.display()))?;
        Ok(archive)
    }

    fn configure(&self, dir: &Path) -> anyhow::Result<()> {
        let (main, security) = uris()?;
        configure(
            dir,
            &self.config,
            "deb",
            &[(main, MAIN), (security, SECURITY)],
        )
    }

    /// All kernels of the usual kind for this processor.
    ///
    /// # Errors
    /// When apt fails.
    pub fn offers(&self) -> anyhow::Result<Vec<Offer>> {
        let text = output(self.apt("apt-cache").args([
            "search",
            "--names-only",
            "--full",
            "^linux-image-[0-9].*-amd64$",
        ]))?;
        Ok(offers(&text))
    }

    /// Unpacks the packages of a kernel below `root`.
    ///
    /// # Errors
    /// When they cannot be fetched or unpacked.
    pub fn unpack(&self, offer: &Offer, root: &Path) -> anyhow::Result<()> {
        let debs = tempfile::tempdir_in(root).context("cannot make a directory for packages")?;
        let mut download = self.apt("apt-get");
        download
            .args(["download", "-qq"])
            .args(&offer.packages)
            .current_dir(debs.path());
        cargo::run(&mut download)?;
        for deb in fs::read_dir(debs.path()).context("cannot list the packages")? {
            let deb = deb.context("cannot list the packages")?.path();
            cargo::run(Command::new("dpkg-deb").arg("-x").arg(deb).arg(root))?;
        }
        Ok(())
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("APT_CONFIG", &self.config)
            .env("LC_ALL", "C")
            .stdin(Stdio::null());
        command
    }
}

/// Has apt read packages of a suite of the main archive, and their sources, into a directory.
/// Returns the configuration, for `APT_CONFIG`.
///
/// # Errors
/// When this is no Debian, or files cannot be written.
pub fn with_sources(dir: &Path, suite: &str) -> anyhow::Result<PathBuf> {
    ensure!(apt::exists(), "there is no apt-get here");
    let config = dir.join("apt.conf");
    let (main, _) = uris()?;
    configure(dir, &config, "deb deb-src", &[(main, suite)])?;
    Ok(config)
}

/// Writes a configuration that keeps everything in `dir`.
fn configure(
    dir: &Path,
    config: &Path,
    types: &str,
    archives: &[(String, &str)],
) -> anyhow::Result<()> {
    for part in ["lists/partial", "cache/archives/partial"] {
        let part = dir.join(part);
        fs::create_dir_all(&part).with_context(|| format!("cannot make {}", part.display()))?;
    }
    let keys = if Path::new(KEYRING).exists() {
        format!("Signed-By: {KEYRING}\n")
    } else {
        // The machine's own keys then.
        String::new()
    };
    let sources = archives.iter().map(|(uri, suites)| {
        format!("Types: {types}\nURIs: {uri}\nSuites: {suites}\nComponents: main\n{keys}\n")
    });
    let sources: Vec<String> = sources.collect();
    let dir = dir.display();
    let list = format!("{dir}/debian.sources");
    let text = format!(
        "Dir::Etc::sourcelist \"{list}\";\n\
         Dir::Etc::sourceparts \"-\";\n\
         Dir::State::lists \"{dir}/lists\";\n\
         Dir::Cache \"{dir}/cache\";\n\
         Acquire::Languages \"none\";\n\
         APT::Sandbox::User \"root\";\n"
    );
    fs::write(&list, sources.concat()).with_context(|| format!("cannot write {list}"))?;
    fs::write(config, text).with_context(|| format!("cannot write {}", config.display()))
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {}", cargo::shown(command)))?;
    ensure!(
        output.status.success(),
        "`{}`: {}",
        cargo::shown(command),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    String::from_utf8(output.stdout).context("apt printed no UTF-8")
}

/// The machine's own sources for Debian's main archive and for its security updates.
fn uris() -> anyhow::Result<(String, String)> {
    let text = output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN)",
        "Identifier: Packages",
    ]))?;
    let Some(found) = uris_in(&text) else {
        bail!(
            "apt's sources here name no archive of Debian with its security updates; \
             give the path of an image instead: --kernel PATH"
        );
    };
    Ok(found)
}

/// The same, from lines of `URI RELEASE COMPONENT ORIGIN`. The origin is missing where package
/// lists were never fetched.
fn uris_in(text: &str) -> Option<(String, String)> {
    let mut lines = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (uri, release, component) = (words.next()?, words.next()?, words.next()?);
        let is_debian = component == "main" && matches!(words.next(), None | Some("Debian"));
        is_debian.then_some((uri, release))
    });
    let (main, _) = lines.clone().find(|(_, release)| !release.contains('-'))?;
    let (security, _) = lines.find(|(_, release)| release.ends_with("-security"))?;
    Some((main.to_owned(), security.to_owned()))
}

/// The kernels in what `apt-cache search --full` prints: a paragraph for each package.
fn offers(text: &str) -> Vec<Offer> {
    text.split("\n\n").filter_map(offer).collect()
}

fn offer(paragraph: &str) -> Option<Offer> {
    let field = |name: &str| {
        paragraph
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    };
    let package = field("Package")?;
    let release = package.strip_prefix("linux-image-")?;
    let flavoured = release.strip_suffix("-amd64")?;
    let flavoured = flavoured.split('-').skip(1).any(starts_with_a_letter);
    let depends = field("Depends").unwrap_or_default();
    // Not `cloud` or `rt`, and no package that only depends on the newest of a series.
    if flavoured || depends.contains("linux-image-") {
        return None;
    }
    let version = Version::of_package(field("Version")?)?;
    // From 7 on the files are in packages of their own.
    let parts = depends
        .split(',')
        .filter_map(|depend| depend.split_whitespace().next())
        .filter(|name| name.starts_with("linux-") && name.ends_with(release))
        .map(str::to_owned);
    Some(Offer {
        version,
        release: release.to_owned(),
        packages: std::iter::once(package.to_owned()).chain(parts).collect(),
    })
}

fn starts_with_a_letter(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sources_of_debian_are_found() {
        let text = "m:/debian bookworm main Debian\n\
                    m:/debian bookworm-updates main Debian\n\
                    m:/other stable main Other\n\
                    s:/security bookworm-security main Debian\n";
        let found = Some(("m:/debian".to_owned(), "s:/security".to_owned()));
        assert_eq!(uris_in(text), found);
        assert_eq!(
            uris_in(&text.replace(" Debian", "")).unwrap().1,
            "s:/security"
        );
        assert_eq!(uris_in("m:/ubuntu noble main Ubuntu\n"), None);
    }

    #[test]
    fn kernels_of_the_usual_kind() {
        let text = "Package: linux-image-5.10.0-46-amd64\nVersion: 5.10.262-1\nDepends: kmod\n\n\
                    Package: linux-image-5.10.0-46-cloud-amd64\nVersion: 5.10.262-1\n\n\
                    Package: linux-image-6.12.118+deb13-rt-amd64\nVersion: 6.12.118-1\n\n\
                    Package: linux-image-6.1-amd64\nVersion: 6.1.192-2\n\
                    Depends: linux-image-6.1.0-56-amd64 (= 6.1.192-2)\n\n\
                    Package: linux-image-7.3.4+deb13-amd64\nVersion: 7.3.4-1~bpo13+1\n\
                    Depends: dracut | x, linux-binary-7.3.4+deb13-amd64 (= 7.3.4-1), \
                    linux-modules-7.3.4+deb13-amd64 (= 7.3.4-1)\n";
        let found = offers(text);
        let packages: Vec<_> = found.iter().map(|offer| offer.packages.join(" ")).collect();
        assert_eq!(
            packages,
            [
                "linux-image-5.10.0-46-amd64",
                "linux-image-7.3.4+deb13-amd64 linux-binary-7.3.4+deb13-amd64 \
                 linux-modules-7.3.4+deb13-amd64"
            ]
        );
        assert_eq!(found[1].release, "7.3.4+deb13-amd64");
    }
}
