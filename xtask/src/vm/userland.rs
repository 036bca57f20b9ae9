//! What tests find in a virtual machine: the programs of this machine that they run, at the same
//! paths, with the libraries that those load.

use std::{
    collections::BTreeSet,
    env,
    ffi::OsStr,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};

use super::initramfs::Initramfs;
use crate::setup;

/// Programs besides those that the setup installs for the tests. What is not here is not there
/// either; the tests that run it say so.
const PROGRAMS: &[&str] = &[
    "sh",
    "bash",
    "cat",
    "cp",
    "ls",
    "mkdir",
    "rm",
    "mv",
    "ln",
    "chmod",
    "chown",
    "id",
    "env",
    "echo",
    "true",
    "false",
    "sleep",
    "kill",
    "timeout",
    "hostname",
    "uname",
    "dmesg",
    "ps",
    "mount",
    "umount",
    "unshare",
    "prlimit",
    "script",
    "sysctl",
    "ss",
    "tc",
    "bridge",
    "head",
    "tail",
    "grep",
    "sed",
    "stty",
    "iptables-save",
    "ip6tables",
    "ip6tables-save",
    "getent",
];

/// Files that programs read.
const FILES: &[&str] = &[
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
    "/etc/protocols",
    "/etc/services",
    "/etc/hosts",
    "/etc/ethertypes",
    "/etc/xtables.conf",
];

/// Adds the programs.
///
/// # Errors
/// When the libraries of one cannot be told, or it cannot be read.
pub fn add(initramfs: &mut Initramfs) -> anyhow::Result<()> {
    let mut libraries = BTreeSet::new();
    for name in PROGRAMS.iter().copied().chain(setup::programs()) {
        let Some(path) = find(name) else { continue };
        libraries.extend(needed(&path)?);
        initramfs.add(&path)?;
        if name == "python3" {
            libraries.extend(add_python(initramfs, &path)?);
        }
    }
    // iptables loads one for each match and target.
    let extensions = libraries
        .iter()
        .filter(|path| is_called(path, "libxtables.so"))
        .filter_map(|path| Some(path.parent()?.join("xtables")))
        .find(|dir| dir.is_dir());
    if let Some(dir) = extensions {
        initramfs.add_tree(&dir, |_| true)?;
    }
    add_libraries(initramfs, libraries)?;
    for file in FILES.iter().map(Path::new).filter(|file| file.exists()) {
        initramfs.add(file)?;
    }
    Ok(())
}

/// Adds what a program loads.
///
/// # Errors
/// As [`add`].
pub fn add_libraries_of(initramfs: &mut Initramfs, program: &Path) -> anyhow::Result<()> {
    add_libraries(initramfs, needed(program)?)
}

fn add_libraries(
    initramfs: &mut Initramfs,
    libraries: impl IntoIterator<Item = PathBuf>,
) -> anyhow::Result<()> {
    libraries
        .into_iter()
        .try_for_each(|library| initramfs.add(&library))
}

fn is_called(path: &Path, name: &str) -> bool {
    path.file_name()
        .and_then(OsStr::to_str)
        .is_some_and(|file| file.starts_with(name))
}

/// The first program of that name that is no script: one that only starts another would need it.
fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|path| is_elf(path))
}

fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(path)
        .and_then(|mut file| file.read_exact(&mut magic))
        .is_ok_and(|()| magic == *b"\x7fELF")
}

/// The libraries that a program or library loads when it is started.
fn needed(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(path)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .context("cannot run ldd")?;
    // Of a static program it says so, and fails.
    let text = String::from_utf8(output.stdout).context("ldd printed no UTF-8")?;
    Ok(libraries_in(&text))
}

/// The paths in what ldd prints: `NAME => PATH (ADDRESS)`, or `PATH (ADDRESS)`.
fn libraries_in(text: &str) -> Vec<PathBuf> {
    let path = |line: &str| {
        let (text, _) = line.trim().rsplit_once(" (")?;
        let path = text.rsplit_once("=> ").map_or(text, |(_, path)| path);
        path.starts_with('/').then(|| PathBuf::from(path))
    };
    text.lines().filter_map(path).collect()
}

/// Adds the standard library of Python; returns what its parts load.
fn add_python(initramfs: &mut Initramfs, python: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new(python)
        .args([
            "-c",
            "import sysconfig; print(sysconfig.get_path('stdlib'))",
        ])
        .stdin(Stdio::null())
        .output()
        .context("cannot run python3")?;
    ensure!(
        output.status.success(),
        "python3 cannot tell where its library is"
    );
    let stdlib = String::from_utf8(output.stdout).context("python3 printed no UTF-8")?;
    let stdlib = Path::new(stdlib.trim());
    initramfs.add_tree(stdlib, |path| {
        let unused = [
            "test",
            "tests",
            "idlelib",
            "lib2to3",
            "ensurepip",
            "site-packages",
            "dist-packages",
            "pydoc_data",
            "tkinter",
            "turtledemo",
            "unittest",
            "distutils",
            "asyncio",
        ];
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        !unused.contains(&name) && !name.starts_with("config-")
    })?;
    // The foreign function interface is what the tests want of it.
    let parts = stdlib.join("lib-dynload").read_dir().into_iter().flatten();
    let mut found = Vec::new();
    for part in parts.flatten() {
        found.extend(needed(&part.path())?);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libraries_that_ldd_names() {
        let text = "\tlinux-vdso.so.1 (0x00007ffc)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f24)\n\
                    \tlibgone.so.1 => not found\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f25)\n";
        assert_eq!(
            libraries_in(text),
            [
                Path::new("/lib/x86_64-linux-gnu/libc.so.6"),
                Path::new("/lib64/ld-linux-x86-64.so.2")
            ]
        );
        assert!(libraries_in("\tstatically linked\n").is_empty());
    }
}
