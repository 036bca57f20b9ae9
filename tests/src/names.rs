//! Names that no other test has.

use std::{
    path::Path,
    process,
    sync::atomic::{AtomicU32, Ordering},
};

/// What all our names begin with.
const PREFIX: &str = "sct-";

/// A name for a kernel object that everybody sees: `sct-PID-NUMBER-LABEL`.
#[must_use]
pub fn unique(label: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}{}-{number}-{label}", process::id())
}

/// Whether [`unique`] made this name in a process that is gone: one that was killed, so that
/// nothing of it could clean up.
#[must_use]
pub fn is_orphan(name: &str) -> bool {
    name.strip_prefix(PREFIX)
        .and_then(|rest| rest.split('-').next())
        .and_then(|pid| pid.parse::<u32>().ok())
        .is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

/// The orphans among the entries of a directory.
pub(crate) fn orphans(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| is_orphan(name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_known_as_ours() {
        let (a, b) = (unique("x"), unique("x"));
        assert_ne!(a, b);
        assert!(!is_orphan(&a), "our process lives");
        // Above the largest process id there can be.
        assert!(is_orphan("sct-4194305-0-x"));
        assert!(!is_orphan("4194305-0-x"), "not ours");
    }
}
