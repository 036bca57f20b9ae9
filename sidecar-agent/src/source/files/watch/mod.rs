//! Notices that files changed. It only says that something did; the reader reads again.

mod inotify;
#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, fs, path::PathBuf, time::Duration};

use rustix::io::Errno;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout_at},
};

use self::inotify::Inotify;
use super::Version;
use crate::{
    backoff::Backoff,
    limits::check_descriptors,
    model::{catalogue, diagnostic::Diagnostic},
};

/// A burst of changes is over when nothing changed for so long.
const QUIET: Duration = Duration::from_millis(5);
/// A burst is reported after so long even if it goes on.
const LONGEST: Duration = Duration::from_millis(50);
/// How often directories are compared where inotify is not to be had.
const POLL: Duration = Duration::from_millis(50);

/// Descriptors that a generation of watches takes, with that of a directory that is read.
const DESCRIPTORS: usize = 4;
/// When inotify is tried again once it was not to be had. It may take a walk through all directories
/// to find out.
const RETRY: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));

/// A running watch; dropping it ends it.
pub struct Watch {
    state: watch::Receiver<State>,
    task: tokio::task::JoinHandle<()>,
}

/// What the watch tells.
#[derive(Default)]
struct State {
    /// Counts changes.
    changes: u64,
    /// Why it polls, if it does.
    degraded: Option<Diagnostic>,
}

impl Watch {
    /// Waits until something changed since the last call (or since the watch began), or the way in
    /// which changes are seen. Nothing is missed: what changes while the caller reads is reported by
    /// the next call.
    pub async fn changed(&mut self) {
        if self.state.changed().await.is_err() {
            // Only if the task is gone, which only dropping the watch ends.
            std::future::pending::<()>().await;
        }
    }

    /// Why the watch polls, if it does now.
    #[must_use]
    pub fn degraded(&self) -> Option<Diagnostic> {
        self.state.borrow().degraded.clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Watches files and directories, with everything below them, whether they exist yet or not.
/// They may be removed and created again, and any part of their paths may be a symbolic link that
/// is replaced. Changes are seen by inotify, or by polling for as long as it is not available.
///
/// Must be called within a tokio runtime.
#[must_use]
pub fn watch(paths: &[PathBuf]) -> Watch {
    watch_by(paths, Inotify::new)
}

/// What begins to watch by inotify: every change sends whether directories may have come or gone.
type Begin = fn(&[PathBuf], &mpsc::UnboundedSender<bool>) -> notify::Result<Inotify>;

fn watch_by(paths: &[PathBuf], begin: Begin) -> Watch {
    let (events, received) = mpsc::unbounded_channel();
    let (report, state) = watch::channel(State::default());
    let watcher = Watcher {
        paths: paths.to_vec(),
        begin,
        events,
        received,
        report,
    };
    // Before the caller reads: what changes from now on is seen.
    let now = watcher.begin().map_err(|cause| {
        watcher
            .report
            .send_modify(|state| state.degraded = Some(degraded(&cause)));
        fingerprint(paths)
    });
    Watch {
        state,
        task: tokio::spawn(watcher.run(now)),
    }
}

/// To be called before anything is given back.
fn degraded(cause: &notify::Error) -> Diagnostic {
    let errno = match &cause.kind {
        notify::ErrorKind::Io(error) => Errno::from_io_error(error),
        _ => None,
    };
    let cause = match errno {
        // Of the process, or of the user.
        Some(Errno::MFILE) => match check_descriptors(DESCRIPTORS) {
            Err(exhausted) => exhausted.to_string(),
            Ok(()) => {
                "the user has no inotify instances left (fs.inotify.max_user_instances)".into()
            }
        },
        _ => cause.to_string(),
    };
    let message =
        format!("inotify is not available: {cause}; files are compared every {POLL:?} until it is");
    Diagnostic::new(catalogue::WATCH_DEGRADED, message)
}

/// What sees changes, and reports them.
struct Watcher {
    paths: Vec<PathBuf>,
    begin: Begin,
    events: mpsc::UnboundedSender<bool>,
    received: mpsc::UnboundedReceiver<bool>,
    report: watch::Sender<State>,
}

impl Watcher {
    fn begin(&self) -> notify::Result<Inotify> {
        (self.begin)(&self.paths, &self.events)
    }

    /// By inotify, or by polling from what is known of the files.
    async fn run(mut self, mut now: Result<Inotify, Fingerprint>) {
        loop {
            now = match now {
                Ok(inotify) => Err(self.by_inotify(inotify).await),
                Err(known) => match self.by_polling(known).await {
                    Some(inotify) => Ok(inotify),
                    None => return,
                },
            };
        }
    }

    fn changed(&self) {
        self.report.send_modify(|state| state.changes += 1);
    }

    /// Until it is not available any more.
    async fn by_inotify(&mut self, mut inotify: Inotify) -> Fingerprint {
        while let Some(mut rearm) = self.received.recv().await {
            let end = Instant::now() + LONGEST;
            while let Ok(Some(more)) =
                timeout_at(end.min(Instant::now() + QUIET), self.received.recv()).await
            {
                rearm |= more;
            }
            if rearm {
                match self.begin() {
                    // The old watches end only now, so nothing is missed in between.
                    Ok(new) => inotify = new,
                    Err(cause) => {
                        let degraded = degraded(&cause);
                        drop(inotify);
                        let now = fingerprint(&self.paths);
                        self.report.send_modify(|state| {
                            state.changes += 1;
                            state.degraded = Some(degraded);
                        });
                        return now;
                    }
                }
            }
            self.changed();
        }
        // Never: a sender is in `self`.
        fingerprint(&self.paths)
    }

    /// Until inotify is available; `None`: the runtime ends.
    async fn by_polling(&mut self, mut known: Fingerprint) -> Option<Inotify> {
        let mut retry = RETRY;
        retry.fail(Instant::now().into_std());
        loop {
            tokio::time::sleep(POLL).await;
            let paths = self.paths.clone();
            let now = tokio::task::spawn_blocking(move || fingerprint(&paths));
            let now = now.await.ok()?;
            if now != known {
                known = now;
                self.changed();
            }
            let at = Instant::now().into_std();
            if !retry.left(at).is_zero() {
                continue;
            }
            match self.begin() {
                Ok(inotify) => {
                    // What has changed since the last comparison is read as well.
                    self.report.send_modify(|state| {
                        state.changes += 1;
                        state.degraded = None;
                    });
                    tracing::info!("directories are watched by inotify again");
                    return Some(inotify);
                }
                Err(cause) => {
                    tracing::debug!(%cause, "inotify is still not available");
                    retry.fail(at);
                }
            }
        }
    }
}

type Fingerprint = BTreeSet<(PathBuf, Version)>;

fn fingerprint(paths: &[PathBuf]) -> Fingerprint {
    let files = super::find(paths).files.into_iter();
    let state = |path: PathBuf| {
        let version = Version::of(&fs::metadata(&path).ok()?);
        Some((path, version))
    };
    files.filter_map(state).collect()
}
