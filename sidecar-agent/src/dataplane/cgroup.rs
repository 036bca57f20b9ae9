//! Finding and opening cgroups. Hosts mount cgroup2 at `/sys/fs/cgroup`, or (hybrid) elsewhere:
//! it is looked for, never assumed.
//!
//! In a cgroup namespace, as in most containers, the kernel tells paths as seen from where that begins:
//! our own as `/`, others' as `/../..`. So they are never joined to the root of a mount, except as a guess.

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
        if contains_us(root, &path)? {
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

/// Where cgroup2 is mounted: of several mounts, the one that shows most. A container has one of its own,
/// which shows what is in the container, beside the host's.
///
/// # Errors
/// If it is not mounted at all.
pub fn root() -> Result<PathBuf> {
    mounts()?.into_iter().next().map(|(_, at)| at).context(
        "cgroup2 is not mounted; mount it with `mount -t cgroup2 none /sys/fs/cgroup/unified`",
    )
}

/// Where cgroup2 is mounted, and how far below the root of our cgroup namespace what is mounted begins
/// (less than 0: above it); first what shows most.
///
/// # Errors
/// If the mounts cannot be read.
pub fn mounts() -> Result<Vec<(i32, PathBuf)>> {
    let mounts = Process::myself()
        .and_then(|process| process.mountinfo())
        .context("reading /proc/self/mountinfo")?;
    let mounts = mounts
        .into_iter()
        .filter(|mount| mount.fs_type == "cgroup2");
    let mut found: Vec<_> = mounts
        .map(|mount| (depth(&mount.root), mount.mount_point))
        .collect();
    // Stable: those that show the same stay in their order.
    found.sort_by_key(|(depth, _)| *depth);
    Ok(found)
}

fn depth(mounted: &str) -> i32 {
    let parts = Path::new(mounted).components();
    parts
        .map(|part| match part {
            Component::ParentDir => -1,
            Component::Normal(_) => 1,
            _ => 0,
        })
        .sum()
}

/// Whether all that is seen of cgroups is this process' own container: in it, and nothing above it.
#[must_use]
pub fn shows_only_us() -> bool {
    let Ok(Some((depth, root))) = mounts().map(|all| all.into_iter().next()) else {
        return false;
    };
    // The root of all cgroups has no such file.
    let is_whole = !root.join("cgroup.events").exists();
    let is_home = || told_own().is_ok_and(|own| own.trim_matches('/').is_empty());
    !is_whole && depth >= 0 && is_home()
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
///
/// # Errors
/// If it is not below this root, or /proc cannot be read.
pub(super) fn own_cgroup(root: &Path) -> Result<PathBuf> {
    let guess = guess_own(root)?;
    if has_us(&guess) {
        return Ok(guess);
    }
    tree(root)
        .into_iter()
        .find(|dir| has_us(dir))
        .with_context(|| {
            let root = root.display();
            format!(
                "this process is in no cgroup below {root}: mount the host's /sys/fs/cgroup there"
            )
        })
}

/// Whether this process is in the cgroup at `path`, or in one below it.
fn contains_us(root: &Path, path: &Path) -> Result<bool> {
    let guess = guess_own(root)?;
    if has_us(&guess) {
        return Ok(guess.starts_with(path));
    }
    Ok(tree(path).iter().any(|dir| has_us(dir)))
}

/// Our own cgroup, if the path that we are told is one below this root.
fn guess_own(root: &Path) -> Result<PathBuf> {
    Ok(root.join(told_own()?.trim_start_matches('/')))
}

fn has_us(dir: &Path) -> bool {
    let own = std::process::id().to_string();
    let procs = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    procs.lines().any(|line| line == own)
}

/// The path of our own cgroup, as seen from our cgroup namespace.
fn told_own() -> Result<String> {
    let groups = Process::myself()
        .and_then(|process| process.cgroups())
        .context("reading /proc/self/cgroup")?;
    let own = groups
        .into_iter()
        .find(|group| group.controllers.iter().all(String::is_empty));
    Ok(own.map(|group| group.pathname).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::depth;

    #[test]
    fn what_shows_most_is_told_from_what_shows_less() {
        // As in mountinfo: the whole, seen from the first namespace; a part; what is above our own.
        for (mounted, expected) in [
            ("/", 0),
            ("/kubepods/pod1", 2),
            ("/../../..", -3),
            ("/../a", 0),
        ] {
            assert_eq!(depth(mounted), expected, "{mounted}");
        }
    }
}
