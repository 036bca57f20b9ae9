//! Notices that files changed. It only says that something did; the reader reads again.

use std::{
    collections::BTreeSet, fs, io, os::unix::fs::MetadataExt, path::PathBuf, time::Duration,
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, ModifyKind},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout_at},
};

use crate::model::{catalogue, diagnostic::Diagnostic};

/// A burst of changes is over when nothing changed for so long.
const QUIET: Duration = Duration::from_millis(10);
/// A burst is reported after so long even if it goes on.
const LONGEST: Duration = Duration::from_millis(50);
/// How often directories are compared where inotify is not to be had.
const POLL: Duration = Duration::from_millis(50);

/// A running watch; dropping it ends it.
pub struct Watch {
    changes: watch::Receiver<u64>,
    task: tokio::task::JoinHandle<()>,
    degraded: Option<Diagnostic>,
}

impl Watch {
    /// Waits until something changed since the last call (or since the watch began). Nothing is
    /// missed: what changes while the caller reads is reported by the next call.
    pub async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            // Only if the task is gone, which only dropping the watch ends.
            std::future::pending::<()>().await;
        }
    }

    /// Why the watch polls, if it does.
    #[must_use]
    pub fn degraded(&self) -> Option<&Diagnostic> {
        self.degraded.as_ref()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Watches files and directories, with everything below them, whether they exist yet or not.
/// They may be removed and created again, and any part of their paths may be a symbolic link that
/// is replaced. Changes are seen by inotify, or by polling where it is not available.
///
/// Must be called within a tokio runtime.
#[must_use]
pub fn watch(paths: &[PathBuf]) -> Watch {
    let (events, received) = mpsc::unbounded_channel();
    let (report, changes) = watch::channel(0);
    let paths = paths.to_vec();
    match Inotify::new(&paths, &events) {
        Ok(inotify) => {
            let task = tokio::spawn(by_inotify(paths, inotify, events, received, report));
            Watch {
                changes,
                task,
                degraded: None,
            }
        }
        Err(cause) => {
            let degraded = Diagnostic::new(
                catalogue::WATCH_DEGRADED,
                format!("inotify is not available ({cause}); files are compared every {POLL:?}"),
            );
            let mut polling = poll(&paths);
            polling.degraded = Some(degraded);
            polling
        }
    }
}

/// Watches by comparing what is in directories.
fn poll(paths: &[PathBuf]) -> Watch {
    let (report, changes) = watch::channel(0);
    let task = tokio::spawn(by_polling(paths.to_vec(), fingerprint(paths), report));
    Watch {
        changes,
        task,
        degraded: None,
    }
}

/// One generation of inotify watches; they end when it is dropped.
struct Inotify {
    _watcher: RecommendedWatcher,
}

impl Inotify {
    /// Watches the paths, and every directory on the way to them, with links resolved and not:
    /// only there it is seen that a directory was replaced.
    fn new(paths: &[PathBuf], events: &mpsc::UnboundedSender<bool>) -> notify::Result<Self> {
        let mut matters = BTreeSet::new();
        for path in paths {
            let path = std::path::absolute(path)?;
            matters.extend(fs::canonicalize(&path));
            matters.insert(path);
        }
        // Files that are links are written where they lead to.
        let links = super::find(paths)
            .files
            .into_iter()
            .filter(|path| path.is_symlink());
        matters.extend(links.filter_map(|path| fs::canonicalize(path).ok()));
        let targets = matters.clone();
        let events = events.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if let Some(rearm) = is_change(event, &matters) {
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

/// Whether an event is a change of something that matters, and if so, whether directories may
/// have come or gone, so that they have to be watched anew.
fn is_change(event: notify::Result<Event>, matters: &BTreeSet<PathBuf>) -> Option<bool> {
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
        _ => Some(true),
    }
}

async fn by_inotify(
    paths: Vec<PathBuf>,
    mut inotify: Inotify,
    events: mpsc::UnboundedSender<bool>,
    mut received: mpsc::UnboundedReceiver<bool>,
    report: watch::Sender<u64>,
) {
    while let Some(mut rearm) = received.recv().await {
        let end = Instant::now() + LONGEST;
        while let Ok(Some(more)) =
            timeout_at(end.min(Instant::now() + QUIET), received.recv()).await
        {
            rearm |= more;
        }
        if rearm {
            match Inotify::new(&paths, &events) {
                // The old watches end only now, so nothing is missed in between.
                Ok(new) => inotify = new,
                Err(cause) => {
                    tracing::warn!(%cause, "cannot watch directories anew; polling them");
                    drop(inotify);
                    let now = fingerprint(&paths);
                    report.send_modify(|n| *n += 1);
                    return by_polling(paths, now, report).await;
                }
            }
        }
        report.send_modify(|n| *n += 1);
    }
}

async fn by_polling(paths: Vec<PathBuf>, mut before: Fingerprint, report: watch::Sender<u64>) {
    loop {
        tokio::time::sleep(POLL).await;
        let paths = paths.clone();
        let Ok(now) = tokio::task::spawn_blocking(move || fingerprint(&paths)).await else {
            return;
        };
        if now != before {
            before = now;
            report.send_modify(|n| *n += 1);
        }
    }
}

/// What tells one state of a file from another: device, inode, size, time of change.
type Fingerprint = BTreeSet<(PathBuf, u64, u64, u64, (i64, i64))>;

fn fingerprint(paths: &[PathBuf]) -> Fingerprint {
    let state = |path: PathBuf| {
        let metadata = fs::metadata(&path).ok()?;
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        Some((
            path,
            metadata.dev(),
            metadata.ino(),
            metadata.size(),
            changed,
        ))
    };
    super::find(paths)
        .files
        .into_iter()
        .filter_map(state)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::symlink, path::Path};

    use super::*;

    /// Far more than a change may take, so that a loaded machine fails no test.
    const DEADLINE: Duration = Duration::from_secs(10);

    async fn is_seen(watch: &mut Watch, what: &str) {
        tokio::time::timeout(DEADLINE, watch.changed())
            .await
            .unwrap_or_else(|_| {
                panic!("not seen: {what}");
            });
        // What belongs to the same change may come in a second burst.
        while tokio::time::timeout(4 * POLL, watch.changed())
            .await
            .is_ok()
        {}
    }

    /// What a watch has to survive, whichever way it sees changes.
    async fn survives(start: fn(&[PathBuf]) -> Watch) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("specs");
        let file = root.join("a.yaml");
        let mut watch = start(std::slice::from_ref(&root));

        fs::create_dir(&root).unwrap();
        fs::write(&file, "1").unwrap();
        is_seen(&mut watch, "a directory that did not exist at first").await;
        fs::write(&file, "22").unwrap();
        is_seen(&mut watch, "a write").await;
        fs::write(root.join("b.tmp"), "333").unwrap();
        fs::rename(root.join("b.tmp"), &file).unwrap();
        is_seen(&mut watch, "a rename onto the file").await;
        fs::create_dir_all(root.join("sub/sub")).unwrap();
        fs::write(root.join("sub/sub/c.yaml"), "1").unwrap();
        is_seen(&mut watch, "a new directory").await;
        fs::write(root.join("sub/sub/c.yaml"), "22").unwrap();
        is_seen(&mut watch, "a write in a new directory").await;
        fs::remove_dir_all(&root).unwrap();
        is_seen(&mut watch, "removal of the directory").await;
        fs::create_dir(&root).unwrap();
        fs::write(&file, "1").unwrap();
        is_seen(&mut watch, "creation of the directory").await;
        fs::write(&file, "22").unwrap();
        is_seen(&mut watch, "a write in the recreated directory").await;
        fs::rename(&root, dir.path().join("old")).unwrap();
        is_seen(&mut watch, "the directory moved away").await;
        fs::rename(dir.path().join("old"), &root).unwrap();
        is_seen(&mut watch, "the directory moved back").await;

        survives_links(&mut watch, dir.path(), &root).await;
    }

    async fn survives_links(watch: &mut Watch, dir: &Path, root: &Path) {
        // As the kubelet updates a volume.
        let publish = |version: &str| {
            fs::create_dir(root.join(version)).unwrap();
            fs::write(root.join(version).join("v.yaml"), version).unwrap();
            symlink(version, root.join("..data_tmp")).unwrap();
            fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
        };
        publish("..1");
        symlink("..data/v.yaml", root.join("v.yaml")).unwrap();
        is_seen(watch, "a volume").await;
        publish("..2");
        is_seen(watch, "an update of the volume").await;

        fs::create_dir(dir.join("elsewhere")).unwrap();
        fs::write(dir.join("elsewhere/d.yaml"), "1").unwrap();
        symlink(dir.join("elsewhere/d.yaml"), root.join("d.yaml")).unwrap();
        is_seen(watch, "a link to a file").await;
        fs::write(dir.join("elsewhere/d.yaml"), "22").unwrap();
        is_seen(watch, "a write to the file a link leads to").await;

        // The directory itself becomes a link, and the link is swapped.
        fs::remove_dir_all(root).unwrap();
        for version in ["one", "two"] {
            fs::create_dir(dir.join(version)).unwrap();
            fs::write(dir.join(version).join("a.yaml"), version).unwrap();
            symlink(version, dir.join("link")).unwrap();
            fs::rename(dir.join("link"), root).unwrap();
            is_seen(watch, version).await;
        }
        fs::write(dir.join("two/a.yaml"), "2222").unwrap();
        is_seen(watch, "a write behind the swapped link").await;
    }

    #[tokio::test]
    async fn inotify_survives() {
        survives(|paths| {
            let watch = watch(paths);
            assert!(watch.degraded().is_none(), "{:?}", watch.degraded());
            watch
        })
        .await;
    }

    #[tokio::test]
    async fn polling_survives() {
        survives(poll).await;
    }

    #[tokio::test]
    async fn reading_is_no_change_and_a_burst_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_path_buf();
        let mut watch = watch(std::slice::from_ref(&root));
        for i in 0..100 {
            fs::write(root.join(format!("{i}.yaml")), "1").unwrap();
        }
        is_seen(&mut watch, "a burst").await;
        assert_eq!(super::super::read(std::slice::from_ref(&root)).len(), 100);
        // A change outside, in a directory that is on the way.
        fs::write(root.with_extension("other"), "").unwrap();
        fs::remove_file(root.with_extension("other")).unwrap();
        let more = tokio::time::timeout(4 * POLL, watch.changed()).await;
        assert!(
            more.is_err(),
            "reading, or a change elsewhere, was reported"
        );
    }

    #[tokio::test]
    async fn a_change_is_seen_soon() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.yaml");
        let mut watch = watch(&[dir.path().into()]);
        let mut best = DEADLINE;
        for round in 0..5 {
            let start = Instant::now();
            fs::write(&file, "x".repeat(round + 1)).unwrap();
            tokio::time::timeout(DEADLINE, watch.changed())
                .await
                .expect("the write is seen");
            best = best.min(start.elapsed());
            while tokio::time::timeout(4 * POLL, watch.changed())
                .await
                .is_ok()
            {}
        }
        // The best of several, because the machine may be busy.
        assert!(best < Duration::from_millis(100), "{best:?}");
    }
}
