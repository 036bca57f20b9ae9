//! Control groups, version 2.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, Once, PoisonError},
};

use anyhow::Context as _;
use rustix::{
    io::Errno,
    process::{Pid, Signal, kill_process},
};

use crate::{
    cleanup::{self, Cleanup},
    names,
    poll::{DEADLINE, poll_result},
};

/// A cgroup of its own below the root of cgroup2. When dropped, processes that were moved into it
/// by [`attach`](Cgroup::attach) go back to where they were, others in it are killed, and it is
/// removed with what is below it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    attached: Arc<Attached>,
    _cleanup: Cleanup,
}

/// Processes that were moved into a cgroup or those below it, with where each came from.
type Attached = Mutex<Vec<(u32, PathBuf)>>;

impl Cgroup {
    /// Makes a cgroup; `label` ends its name.
    ///
    /// # Errors
    /// When cgroup2 is not mounted, or for want of root.
    pub fn new(label: &str) -> anyhow::Result<Self> {
        let root = Self::root()?;
        remove_orphans(&root);
        Self::make(root.join(names::unique(label)), Arc::default())
    }

    /// Makes a cgroup at a path below the root, in one that is there.
    ///
    /// # Errors
    /// When there is one of that name, or for want of root.
    pub fn at(path: &str) -> anyhow::Result<Self> {
        Self::make(Self::root()?.join(path), Arc::default())
    }

    /// Makes a cgroup below this one.
    ///
    /// # Errors
    /// When there is one of that name, or for want of root.
    pub fn child(&self, name: &str) -> anyhow::Result<Self> {
        Self::make(self.path.join(name), Arc::clone(&self.attached))
    }

    fn make(path: PathBuf, attached: Arc<Attached>) -> anyhow::Result<Self> {
        fs::create_dir(&path)
            .with_context(|| format!("cannot make the cgroup {}", path.display()))?;
        let cleanup = cleanup::on_drop({
            let (path, attached) = (path.clone(), Arc::clone(&attached));
            move || {
                if let Err(error) = remove(&path, &attached) {
                    eprintln!("left behind: {error:#}");
                }
            }
        });
        Ok(Self {
            path,
            attached,
            _cleanup: cleanup,
        })
    }

    /// Where cgroup2 is mounted: `/sys/fs/cgroup`, or elsewhere beside version 1 (hybrid).
    ///
    /// # Errors
    /// When it is not mounted.
    pub fn root() -> anyhow::Result<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")
            .context("cannot read /proc/self/mountinfo")?;
        root_in(&mounts).context("cgroup2 is not mounted; mount -t cgroup2 none DIRECTORY")
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its path below the root of cgroup2, as the agent's annotations want it.
    ///
    /// # Errors
    /// When cgroup2 is not mounted.
    pub fn below_root(&self) -> anyhow::Result<String> {
        Ok(self.path.strip_prefix(Self::root()?)?.display().to_string())
    }

    /// Its id, as `bpf_get_current_cgroup_id` tells it: the inode number of the directory.
    ///
    /// # Errors
    /// When it was removed behind our back.
    pub fn id(&self) -> anyhow::Result<u64> {
        let metadata = fs::metadata(&self.path)
            .with_context(|| format!("cannot look at {}", self.path.display()))?;
        Ok(metadata.ino())
    }

    /// Moves a process into it, to be moved back when the cgroup is dropped.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn attach(&self, pid: u32) -> anyhow::Result<()> {
        let from = Self::of(pid)?;
        move_to(&self.path, pid)?;
        self.attached
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((pid, from));
        Ok(())
    }

    /// The directory of the cgroup that a process is in.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn of(pid: u32) -> anyhow::Result<PathBuf> {
        let file = format!("/proc/{pid}/cgroup");
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
        let path = text
            .lines()
            .find_map(|line| line.strip_prefix("0::/"))
            .with_context(|| format!("{file} has no line for cgroup2"))?;
        Ok(Self::root()?.join(path))
    }

    /// The ids of the processes in it, not counting cgroups below it.
    ///
    /// # Errors
    /// When it was removed behind our back.
    pub fn pids(&self) -> anyhow::Result<Vec<u32>> {
        pids(&self.path)
    }

    /// The file that moves the process whose id is written to it here.
    pub(crate) fn procs_file(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }
}

/// The mount point of cgroup2 in the text of a `mountinfo` file; see proc(5) for its fields.
fn root_in(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let is_cgroup2 = filesystem.split(' ').next()? == "cgroup2";
        is_cgroup2
            .then(|| mount.split(' ').nth(4))
            .flatten()
            .map(PathBuf::from)
    })
}

fn pids(cgroup: &Path) -> anyhow::Result<Vec<u32>> {
    let file = cgroup.join("cgroup.procs");
    let text = match fs::read_to_string(&file) {
        // It holds threads, whose ids do as well.
        Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => {
            fs::read_to_string(cgroup.join("cgroup.threads"))
        }
        text => text,
    };
    let text = text.with_context(|| format!("cannot read {}", file.display()))?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
}

fn move_to(cgroup: &Path, pid: u32) -> anyhow::Result<()> {
    fs::write(cgroup.join("cgroup.procs"), pid.to_string()).with_context(|| {
        format!(
            "cannot move process {pid} to the cgroup {}",
            cgroup.display()
        )
    })
}

fn remove(path: &Path, attached: &Attached) -> anyhow::Result<()> {
    attached
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .retain(|(pid, from)| {
            // It may have ended, or gone elsewhere.
            let is_below = Cgroup::of(*pid).is_ok_and(|cgroup| cgroup.starts_with(path));
            if is_below && let Err(error) = move_to(from, *pid) {
                eprintln!("process {pid} will be killed: {error:#}");
            }
            !is_below
        });
    // A killed process is in the cgroup until it has ended.
    poll_result(DEADLINE, "a cgroup to become empty", || {
        empty_and_remove(path)
    })
}

fn empty_and_remove(path: &Path) -> anyhow::Result<()> {
    let entries = match fs::read_dir(path) {
        // Removed with the cgroup above it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("cannot list {}", path.display()))?,
    };
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        empty_and_remove(&entry.path())?;
    }
    for pid in pids(path)? {
        if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    fs::remove_dir(path).with_context(|| format!("cannot remove the cgroup {}", path.display()))
}

/// Removes, once in a process, what test runs that were killed have left.
fn remove_orphans(root: &Path) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| remove_all_orphans(root));
}

pub(crate) fn remove_all_orphans(root: &Path) {
    for name in names::orphans(root) {
        // Another test run may be at it as well.
        let _ = remove(&root.join(name), &Attached::default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_point_is_found_in_both_layouts() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu rw shared:3 - cgroup cgroup rw,cpu\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(
            root_in(hybrid).unwrap(),
            Path::new("/sys/fs/cgroup/unified")
        );
        let unified = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(root_in(unified).unwrap(), Path::new("/sys/fs/cgroup"));
        assert_eq!(
            root_in("31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"),
            None
        );
    }
}
