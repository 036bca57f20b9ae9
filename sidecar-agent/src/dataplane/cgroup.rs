//! Finding and opening cgroups. Hosts mount cgroup2 at `/sys/fs/cgroup`, or (hybrid) elsewhere:
//! it is looked for, never assumed.

use std::{
    fs::File,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use procfs::process::Process;

/// An open cgroup2 directory.
#[derive(Debug)]
pub struct Cgroup {
    /// Absolute path.
    pub path: PathBuf,
    /// The kernel's cgroup id: the directory's inode number.
    pub id: u64,
    file: File,
}

impl Cgroup {
    /// Opens the cgroup at `path` below the cgroup2 root.
    ///
    /// # Errors
    /// If there is no such cgroup, or if it is the root or contains the agent: capturing those
    /// would capture the agent's own connections.
    pub fn open(root: &Path, path: &str) -> Result<Self> {
        let relative = Path::new(path.trim_start_matches('/'));
        if relative
            .components()
            .any(|part| !matches!(part, Component::Normal(_)))
            || relative.as_os_str().is_empty()
        {
            bail!("cgroup `{path}`: not a path below the cgroup2 root");
        }
        let path = root.join(relative);
        if own_cgroup(root)?.starts_with(&path) {
            bail!(
                "cgroup {} contains the agent itself; run the agent in a cgroup of its own",
                path.display()
            );
        }
        let file = File::open(&path).with_context(|| {
            format!(
                "opening cgroup {}: is the workload running?",
                path.display()
            )
        })?;
        let id = file
            .metadata()
            .with_context(|| format!("reading {}", path.display()))?
            .ino();
        Ok(Self { path, id, file })
    }

    /// Whether the directory that was opened is still the cgroup at its path.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|found| found.ino() == self.id)
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Where cgroup2 is mounted.
///
/// # Errors
/// If it is not mounted at all.
pub fn root() -> Result<PathBuf> {
    Process::myself()
        .and_then(|process| process.mountinfo())
        .context("reading /proc/self/mountinfo")?
        .into_iter()
        .find(|mount| mount.fs_type == "cgroup2")
        .map(|mount| mount.mount_point)
        .context(
            "cgroup2 is not mounted; mount it with `mount -t cgroup2 none /sys/fs/cgroup/unified`",
        )
}

/// Every process in the cgroup at `path` and its descendants.
#[must_use]
pub fn processes(path: &Path) -> Vec<i32> {
    let mut found = Vec::new();
    for dir in tree(path) {
        if let Ok(procs) = std::fs::read_to_string(dir.join("cgroup.procs")) {
            found.extend(procs.lines().filter_map(|line| line.parse::<i32>().ok()));
        }
    }
    found
}

/// The cgroup at `path` and its descendants, each before those in it.
#[must_use]
pub fn tree(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![path.to_owned()];
    while let Some(dir) = open.pop() {
        if let Ok(entries) = std::fs::read_dir(&dir) {
            open.extend(
                entries
                    .flatten()
                    .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                    .map(|entry| entry.path()),
            );
        }
        found.push(dir);
    }
    found
}

/// The calling process's own cgroup, as a path.
pub(super) fn own_cgroup(root: &Path) -> Result<PathBuf> {
    let own = Process::myself()
        .and_then(|process| process.cgroups())
        .context("reading /proc/self/cgroup")?
        .into_iter()
        .find(|group| group.controllers.iter().all(String::is_empty))
        .map(|group| group.pathname)
        .unwrap_or_default();
    Ok(root.join(own.trim_start_matches('/')))
}
