//! The files of the configuration, read as a whole.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use super::{Options, REFRESH};
use crate::{
    backoff::Backoff,
    source::files::{self, Store, Update, Watch},
};

/// When files are read again that could not be.
const UNREAD: Backoff = Backoff::new(REFRESH, Duration::from_secs(30));

/// Reads them, and keeps what was last good.
pub struct Reading {
    paths: Vec<PathBuf>,
    store: Store,
    unread: Backoff,
}

impl Reading {
    /// Of what the agent was started with.
    pub fn new(options: &Options) -> Self {
        Self {
            paths: [&options.config]
                .into_iter()
                .chain(&options.mesh_config)
                .cloned()
                .collect(),
            store: Store::new(options.compat),
            unread: UNREAD,
        }
    }

    /// Notices that they change.
    pub fn watch(&self) -> Watch {
        files::watch(&self.paths)
    }

    /// Reads those that have changed.
    pub fn read(&mut self) -> Update {
        let read = files::read_changed(&self.paths, |path| self.store.version(path));
        self.store.update(read)
    }

    /// Reads them again where something could not be read the last time, as nobody tells when it can
    /// be: `None` if that is not so, or it still cannot be.
    pub fn read_again(&mut self, last: &Update) -> Option<Update> {
        let now = Instant::now();
        if !last.unread || !self.unread.left(now).is_zero() {
            return None;
        }
        let update = self.read();
        if update.unread {
            self.unread.fail(now);
            return None;
        }
        self.unread.reset();
        Some(update)
    }
}
