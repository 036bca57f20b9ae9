//! Which cgroups there are, and whether processes are in those of version 2.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use procfs::process::Process;

use super::{Check, catalogue};
use crate::dataplane::cgroup;

/// Inode number of the first cgroup namespace (`PROC_CGROUP_INIT_INO`).
const FIRST_NAMESPACE: u64 = 0xefff_fffb;

/// What is mounted, and where we are.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// Mount points of cgroup2, the one that is used first.
    v2: Vec<String>,
    /// Whether hierarchies of version 1 are mounted.
    v1: bool,
    /// Whether a cgroup below the root of cgroup2 has processes; `None`: it cannot be read.
    populated: Option<bool>,
    /// Whether this process is in a cgroup namespace of its own, and sees nothing outside of it.
    nested: bool,
}

/// How cgroups are laid out.
pub fn layout() -> Vec<Check> {
    judge(&look())
}

fn look() -> Seen {
    let mounts = Process::myself()
        .and_then(|process| process.mountinfo())
        .map(|mounts| mounts.0)
        .unwrap_or_default();
    let found = cgroup::mounts().unwrap_or_default();
    let sees_outside = found.first().is_some_and(|(depth, _)| *depth < 0);
    let v2: Vec<String> = found
        .into_iter()
        .map(|(_, at)| at.display().to_string())
        .collect();
    Seen {
        v1: mounts.iter().any(|mount| mount.fs_type == "cgroup"),
        populated: v2.first().and_then(|root| is_populated(Path::new(root))),
        v2,
        nested: !sees_outside
            && fs::metadata("/proc/self/ns/cgroup")
                .is_ok_and(|namespace| namespace.ino() != FIRST_NAMESPACE),
    }
}

/// Whether any child of a cgroup has processes, itself or below.
fn is_populated(root: &Path) -> Option<bool> {
    let children = fs::read_dir(root).ok()?.flatten();
    Some(
        children
            .filter_map(|child| fs::read_to_string(child.path().join("cgroup.events")).ok())
            .any(|events| events.lines().any(|line| line == "populated 1")),
    )
}

fn judge(seen: &Seen) -> Vec<Check> {
    let what = "cgroup layout";
    let Some(root) = seen.v2.first() else {
        let found = if seen.v1 {
            "only version 1 is mounted"
        } else {
            "no cgroups are mounted"
        };
        return vec![Check::finding(what, catalogue::NO_CGROUP2, found)];
    };
    let layout = if seen.v1 {
        format!("hybrid: version 2 at {root}, beside version 1")
    } else {
        format!("version 2 at {root}")
    };
    let also = match &seen.v2[1..] {
        [] => String::new(),
        others => format!(
            ", also at {}; the first shows most, and counts",
            others.join(", ")
        ),
    };
    let mut checks = vec![Check::ok(what, layout + &also)];
    let processes = "processes in cgroup2";
    checks.push(match seen.populated {
        Some(true) => Check::ok(processes, "some are below its root"),
        // With version 2 alone, all processes are somewhere in it.
        Some(false) if seen.v1 => {
            let found = format!("all are in the root, {root}");
            Check::finding(processes, catalogue::TASKS_ELSEWHERE, found)
        }
        Some(false) => Check::info(processes, "all are in the root"),
        None => Check::info(processes, format!("{root} cannot be read")),
    });
    let namespace = "cgroup namespace";
    checks.push(if seen.nested {
        let found = "not the host's (as in a container, or a node of kind)";
        Check::finding(namespace, catalogue::NESTED, found)
    } else {
        Check::ok(namespace, "the host's")
    });
    checks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::report::State;

    fn codes(seen: &Seen) -> Vec<&'static str> {
        let checks = judge(seen);
        let findings = checks.iter().filter_map(|check| check.finding.as_ref());
        findings.map(|finding| finding.code).collect()
    }

    #[test]
    fn every_layout_is_judged() {
        let v2 = Seen {
            v2: vec!["/sys/fs/cgroup".into()],
            populated: Some(true),
            ..Seen::default()
        };
        assert!(codes(&v2).is_empty());
        let hybrid = Seen {
            v1: true,
            v2: vec!["/sys/fs/cgroup/unified".into()],
            ..v2.clone()
        };
        assert!(codes(&hybrid).is_empty());
        let elsewhere = Seen {
            populated: Some(false),
            ..hybrid
        };
        assert_eq!(codes(&elsewhere), [catalogue::TASKS_ELSEWHERE.id]);
        let v1 = Seen {
            v1: true,
            ..Seen::default()
        };
        assert_eq!(codes(&v1), [catalogue::NO_CGROUP2.id]);
        assert_eq!(codes(&Seen::default()), [catalogue::NO_CGROUP2.id]);
        let kind = Seen { nested: true, ..v2 };
        assert_eq!(codes(&kind), [catalogue::NESTED.id]);
    }

    #[test]
    fn one_that_is_mounted_twice_is_told() {
        let twice = Seen {
            v2: vec!["/a".into(), "/b".into()],
            populated: Some(true),
            ..Seen::default()
        };
        let checks = judge(&twice);
        assert_eq!(checks[0].state, State::Ok);
        assert!(
            checks[0].found.contains("also at /b"),
            "{}",
            checks[0].found
        );
    }
}
