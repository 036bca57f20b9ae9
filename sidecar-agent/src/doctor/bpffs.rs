//! The BPF file system that the agent's maps are pinned in.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path};

use rustix::{process::geteuid, thread::CapabilitySet};

use super::{Check, catalogue};
use crate::{
    dataplane::{default_pin_dir, is_bpffs},
    privileges,
};

/// A directory.
#[derive(Clone, Copy, Debug)]
struct Dir {
    owner: u32,
    mode: u32,
}

/// What was seen.
#[derive(Clone, Copy, Debug)]
struct Seen {
    is_mounted: bool,
    can_mount: bool,
    /// We.
    user: u32,
    /// Where it is mounted.
    root: Option<Dir>,
    /// The agent's own directory in it.
    pins: Option<Dir>,
}

/// Whether it is mounted at `at`, and whose it is.
pub fn look(at: &Path) -> Vec<Check> {
    let pins = default_pin_dir(at);
    let seen = Seen {
        is_mounted: is_bpffs(at),
        can_mount: privileges::effective()
            .is_ok_and(|effective| effective.contains(CapabilitySet::SYS_ADMIN)),
        user: geteuid().as_raw(),
        root: dir(at).ok(),
        pins: dir(&pins).ok(),
    };
    judge(at, &pins, &seen)
}

fn dir(path: &Path) -> io::Result<Dir> {
    let found = fs::symlink_metadata(path)?;
    Ok(Dir {
        owner: found.uid(),
        mode: found.mode() & 0o7777,
    })
}

fn judge(at: &Path, pins: &Path, seen: &Seen) -> Vec<Check> {
    let what = "bpffs";
    let at = at.display();
    if !seen.is_mounted {
        return vec![if seen.can_mount {
            Check::info(
                what,
                format!("not mounted at {at}; the agent will mount it"),
            )
        } else {
            let found = format!("not mounted at {at}, and we may not mount it");
            Check::finding(what, catalogue::NO_BPFFS, found)
        }];
    }
    let mut checks = vec![Check::ok(what, format!("mounted at {at}"))];
    if let Some(Dir { owner, mode }) = seen.root {
        let writers = "who may write to bpffs";
        checks.push(if mode & 0o022 == 0 {
            Check::ok(writers, format!("user {owner} (mode {mode:04o})"))
        } else {
            let found = format!("others than user {owner}, too (mode {mode:04o})");
            Check::finding(writers, catalogue::OPEN_BPFFS, found)
        });
    }
    let what = "directory of pins";
    let pins = pins.display();
    checks.push(match seen.pins {
        None => Check::ok(what, format!("{pins} is not there yet")),
        Some(Dir { owner, mode }) if owner != seen.user || mode & 0o022 != 0 => {
            let found = format!("{pins} is of user {owner}, mode {mode:04o}");
            Check::finding(what, catalogue::FOREIGN_PINS, found)
        }
        Some(_) => Check::ok(what, format!("{pins} is ours alone")),
    });
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_the_agent_from_starting_is_found() {
        let own = Dir {
            owner: 0,
            mode: 0o700,
        };
        let well = Seen {
            is_mounted: true,
            can_mount: true,
            user: 0,
            root: Some(own),
            pins: None,
        };
        let codes = |seen: &Seen| -> Vec<&str> {
            let checks = judge(Path::new("/b"), Path::new("/b/p"), seen);
            let findings = checks.iter().filter_map(|check| check.finding.as_ref());
            findings.map(|finding| finding.code).collect()
        };
        assert!(codes(&well).is_empty());
        let mode = |mode| Some(Dir { mode, ..own });
        let owner = |owner| Some(Dir { owner, ..own });
        for (seen, code) in [
            (
                Seen {
                    root: mode(0o1777),
                    ..well
                },
                catalogue::OPEN_BPFFS,
            ),
            (
                Seen {
                    pins: owner(1000),
                    ..well
                },
                catalogue::FOREIGN_PINS,
            ),
            (
                Seen {
                    pins: mode(0o770),
                    ..well
                },
                catalogue::FOREIGN_PINS,
            ),
            (
                Seen {
                    is_mounted: false,
                    can_mount: false,
                    ..well
                },
                catalogue::NO_BPFFS,
            ),
        ] {
            assert_eq!(codes(&seen), [code.id], "{seen:?}");
        }
        let unmounted = Seen {
            is_mounted: false,
            ..well
        };
        assert!(codes(&unmounted).is_empty(), "it will be mounted");
    }
}
