//! Watches of the kernel on directories.

use std::{collections::BTreeSet, fs, io, path::PathBuf};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, ModifyKind},
};
use tokio::sync::mpsc;

/// One generation of inotify watches; they end when it is dropped.
pub struct Inotify {
    _watcher: RecommendedWatcher,
}

impl Inotify {
    /// Watches the paths, and every directory on the way to them, with links resolved and not:
    /// only there it is seen that a directory was replaced.
    pub fn new(paths: &[PathBuf], events: &mpsc::UnboundedSender<bool>) -> notify::Result<Self> {
        let mut matters = BTreeSet::new();
        for path in paths {
            let path = std::path::absolute(path)?;
            matters.extend(fs::canonicalize(&path));
            matters.insert(path);
        }
        let ways = super::super::find(paths).ways;
        // Files that are links are written where they lead to.
        let links = ways
            .iter()
            .filter(|path| path.is_symlink() && !path.is_dir());
        matters.extend(links.filter_map(|path| fs::canonicalize(path).ok()));
        let targets = matters.clone();
        let events = events.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if let Some(rearm) = is_change(event, &matters, &ways) {
                // The receiver goes away only with the whole watch.
                let _ = events.send(rearm);
            }
        })?;
        for path in &targets {
            for way in path.ancestors().skip(1) {
                optional(watcher.watch(way, RecursiveMode::NonRecursive))?;
            }
            optional(watcher.watch(path, RecursiveMode::Recursive))?;
        }
        Ok(Self { _watcher: watcher })
    }
}

/// What does not exist yet, or must not be read, cannot be watched; the directory it will appear
/// in is.
fn optional(result: notify::Result<()>) -> notify::Result<()> {
    match result {
        Err(notify::Error {
            kind: notify::ErrorKind::PathNotFound,
            ..
        }) => Ok(()),
        Err(notify::Error {
            kind: notify::ErrorKind::Io(cause),
            ..
        }) if matches!(
            cause.kind(),
            io::ErrorKind::NotFound
                | io::ErrorKind::NotADirectory
                | io::ErrorKind::PermissionDenied
        ) =>
        {
            Ok(())
        }
        other => other,
    }
}

/// Whether an event is a change of something that matters, and if so, whether directories or links
/// may have come or gone, so that they have to be watched anew. `ways`: those that there were.
fn is_change(
    event: notify::Result<Event>,
    matters: &BTreeSet<PathBuf>,
    ways: &BTreeSet<PathBuf>,
) -> Option<bool> {
    // An error, such as an overflow of the queue: anything may have happened.
    let Ok(event) = event else { return Some(true) };
    if event.need_rescan() {
        return Some(true);
    }
    let concerns = |path: &PathBuf| {
        matters
            .iter()
            .any(|target| path.starts_with(target) || target.starts_with(path))
    };
    if !event.paths.is_empty() && !event.paths.iter().any(concerns) {
        return None;
    }
    match event.kind {
        // Reading is no change; our own reader would wake itself.
        EventKind::Access(AccessKind::Close(AccessMode::Write))
        | EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Metadata(_)) => Some(false),
        EventKind::Access(_) => None,
        _ => {
            let leads_on = |path: &PathBuf| {
                ways.contains(path)
                    || matters.iter().any(|target| target.starts_with(path))
                    || fs::symlink_metadata(path).is_ok_and(|found| !found.is_file())
            };
            Some(event.paths.is_empty() || event.paths.iter().any(leads_on))
        }
    }
}
