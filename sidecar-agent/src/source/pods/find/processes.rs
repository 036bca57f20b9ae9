//! The processes of pods: one pass over /proc.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use procfs::process::Process;

use crate::source::pod_cgroup;

/// A process in a container of a pod.
pub(super) struct Found {
    /// Its directory in /proc.
    pub dir: PathBuf,
    /// The id of its container.
    pub container: String,
    /// When it started, in clock ticks since boot.
    pub started: u64,
    /// Its network namespace, opened: it stays that of this process, whoever gets its number.
    pub netns: File,
    /// Device and inode of that.
    pub netns_id: (u64, u64),
    /// Whether it is in its pod's cgroup in the hierarchy of version 2 as well.
    pub in_cgroup2: bool,
}

/// The network namespace of the host: that of the first process.
pub(super) fn host_netns(proc: &Path) -> Result<(u64, u64)> {
    let path = proc.join("1/ns/net");
    let found = fs::metadata(&path).with_context(|| {
        format!(
            "reading {}: is --host-proc the host's /proc, and has the agent CAP_SYS_PTRACE?",
            path.display()
        )
    })?;
    Ok((found.dev(), found.ino()))
}

/// The processes of the pods with these UIDs, the oldest first.
///
/// # Errors
/// If /proc cannot be listed. A process that ends meanwhile is none.
pub(super) fn of_pods(proc: &Path, uids: &BTreeSet<&str>) -> Result<BTreeMap<String, Vec<Found>>> {
    let mut pods: BTreeMap<String, Vec<Found>> = BTreeMap::new();
    let entries = fs::read_dir(proc).with_context(|| format!("listing {}", proc.display()))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        if !name.as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        if let Some((uid, found)) = look(entry.path(), uids) {
            pods.entry(uid).or_default().push(found);
        }
    }
    for processes in pods.values_mut() {
        processes.sort_by_key(|process| process.started);
    }
    Ok(pods)
}

/// `None`: it is in none of these pods, or has ended.
fn look(dir: PathBuf, uids: &BTreeSet<&str>) -> Option<(String, Found)> {
    // What is read is read of this process, even if it ends and another gets its number.
    let process = Process::new_with_root(dir.clone()).ok()?;
    let groups = process.cgroups().ok()?;
    let paths = groups.0.iter().map(|group| group.pathname.as_str());
    let pod_cgroup::PodCgroup {
        pod_uid,
        container_id,
    } = pod_cgroup::of_process(paths).ok().flatten()?;
    let uid = pod_uid.filter(|uid| uids.contains(uid.as_str()))?;
    let in_cgroup2 = groups.0.iter().any(|group| {
        let found = (group.hierarchy == 0).then(|| pod_cgroup::of_path(&group.pathname));
        found.flatten().is_some()
    });
    let netns = process.open_relative("ns/net").ok()?;
    let id = netns.metadata().ok()?;
    Some((
        uid,
        Found {
            dir,
            container: container_id,
            started: process.stat().ok()?.starttime,
            netns_id: (id.dev(), id.ino()),
            netns,
            in_cgroup2,
        },
    ))
}
