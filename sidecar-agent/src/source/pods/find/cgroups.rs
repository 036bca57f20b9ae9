//! Pods' cgroups, by the names of directories.
//!
//! Not by the paths in /proc/PID/cgroup: kubelet makes a pod's cgroup before the pod has a process,
//! and in a cgroup namespace those paths are told from where the agent is.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use crate::source::pod_cgroup;

/// The cgroups of pods with these UIDs, as absolute paths below `root`.
pub(super) fn of_pods(root: &Path, uids: &BTreeSet<&str>) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        for (name, path) in children(&dir) {
            match pod_cgroup::of_directory(&name) {
                Some(uid) if uids.contains(uid.as_str()) => {
                    found.entry(uid).or_insert(path);
                }
                // Below another pod's cgroup there are only its containers (but the nodes of kind
                // are pods' containers as well, and nested ones have pods of their own).
                _ => open.push(path),
            }
        }
    }
    found
}

/// The cgroup of a container, by its id, within its pod's.
pub(super) fn of_container(pod: &Path, id: &str) -> Option<PathBuf> {
    let is_it = |(name, path): (String, PathBuf)| {
        // cri-o's monitor has the container's id, too.
        let found = pod_cgroup::of_path(&path.to_string_lossy())?;
        (found.container_id == id && !name.starts_with("crio-conmon-")).then_some(path)
    };
    children(pod).find_map(is_it)
}

fn children(dir: &Path) -> impl Iterator<Item = (String, PathBuf)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.map(|entry| {
        (
            entry.file_name().to_string_lossy().into_owned(),
            entry.path(),
        )
    })
}
