//! Which state of a file a text was read from.

use std::{
    fs::Metadata,
    os::unix::fs::MetadataExt,
    time::{Duration, SystemTime},
};

/// File systems tell times as coarsely as this.
const GRANULARITY: Duration = Duration::from_secs(2);

/// What tells one state of a file from another. Equal versions are the same state, if the file was
/// at rest when it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    device: u64,
    inode: u64,
    size: u64,
    /// Of content or anything else; seconds and nanoseconds.
    changed: (i64, i64),
}

impl Version {
    /// The present one.
    #[must_use]
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether the file has been at rest: a change after `now` has another time. (As git knows of
    /// the files in its index.)
    #[must_use]
    pub fn is_at_rest(&self, now: SystemTime) -> bool {
        let Ok(since_epoch) = now.duration_since(SystemTime::UNIX_EPOCH) else {
            return false;
        };
        let settled = since_epoch.saturating_sub(GRANULARITY);
        u64::try_from(self.changed.0).is_ok_and(|seconds| seconds < settled.as_secs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_changed_a_moment_ago_may_change_unseen() {
        let at = |seconds| Version {
            device: 1,
            inode: 1,
            size: 1,
            changed: (seconds, 999_999_999),
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        for (seconds, at_rest) in [
            (97, true),
            (98, false),
            (100, false),
            (200, false),
            (-1, false),
        ] {
            assert_eq!(at(seconds).is_at_rest(now), at_rest, "{seconds}");
        }
    }
}
