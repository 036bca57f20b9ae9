//! The same directory in every hierarchy of control groups, as runc makes it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};

use crate::{
    Cgroup,
    cleanup::{self, Cleanup},
    poll::{DEADLINE, poll_result},
};

/// A directory of its own in every hierarchy; removed when dropped, after the processes in it are
/// killed by that of version 2.
#[derive(Debug)]
pub struct Groups {
    // Before the others: it ends the processes.
    v2: Cgroup,
    v1: Vec<PathBuf>,
    _cleanup: Cleanup,
}

impl Groups {
    pub fn new() -> anyhow::Result<Self> {
        let v2 = Cgroup::new("node")?;
        let name = v2.below_root()?;
        let mounts = fs::read_to_string("/proc/self/mountinfo")
            .context("cannot read /proc/self/mountinfo")?;
        let v1: Vec<PathBuf> = mounts.lines().filter_map(v1_mount).collect();
        let cleanup = cleanup::on_drop({
            let dirs: Vec<PathBuf> = v1.iter().map(|root| root.join(&name)).collect();
            move || {
                for dir in dirs {
                    let gone = poll_result(DEADLINE, "a cgroup to be removed", || remove(&dir));
                    if let Err(error) = gone {
                        eprintln!("left behind: {error:#}");
                    }
                }
            }
        });
        Ok(Self {
            v2,
            v1,
            _cleanup: cleanup,
        })
    }

    /// Its name below each root.
    pub fn name(&self) -> String {
        let name = self.v2.path().file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    pub fn is_hybrid(&self) -> bool {
        !self.v1.is_empty()
    }

    /// Makes a directory in each.
    pub fn make(&self, path: &str) -> anyhow::Result<()> {
        let v2 = Cgroup::root()?;
        for root in self.v1.iter().chain([&v2]) {
            let dir = root.join(path);
            fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        }
        Ok(())
    }

    /// Removes a directory in each, in which no process is any more.
    pub fn remove(&self, path: &str) -> anyhow::Result<()> {
        let v2 = Cgroup::root()?;
        for root in self.v1.iter().chain([&v2]) {
            let dir = root.join(path);
            poll_result(DEADLINE, "a cgroup to be removed", || remove(&dir))?;
        }
        Ok(())
    }

    /// Moves a process there in a hierarchy of version 1 that lets every process in.
    pub fn move_in_v1(&self, pid: u32, path: &str) -> anyhow::Result<()> {
        let named = ["pids", "freezer", "systemd"];
        let mut roots = self
            .v1
            .iter()
            .filter(|root| named.iter().any(|name| root.ends_with(name)));
        let root = roots
            .next()
            .context("no hierarchy of version 1 that would do")?;
        let dir = root.join(path);
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("cgroup.procs"), pid.to_string())?;
        ensure!(fs::read_to_string(format!("/proc/{pid}/cgroup"))?.contains(path));
        Ok(())
    }
}

fn v1_mount(line: &str) -> Option<PathBuf> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let is_v1 = filesystem.split(' ').next()? == "cgroup";
    is_v1
        .then(|| mount.split(' ').nth(4))
        .flatten()
        .map(PathBuf::from)
}

fn remove(dir: &Path) -> anyhow::Result<()> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Ok(());
    };
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        remove(&entry.path())?;
    }
    fs::remove_dir(dir).with_context(|| format!("cannot remove the cgroup {}", dir.display()))
}
