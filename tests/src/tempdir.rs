//! Directories for files of a test.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use crate::cleanup::{self, Cleanup};

/// A directory of its own below the system's temporary one. Removed with what is in it when
/// dropped, and also when the process is interrupted, which [`tempfile::TempDir`] is not.
#[derive(Debug)]
pub struct TempDir {
    path: PathBuf,
    _cleanup: Cleanup,
}

impl TempDir {
    /// Makes one; `prefix` begins its name.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(prefix: &str) -> anyhow::Result<Self> {
        let path = tempfile::Builder::new()
            .prefix(prefix)
            .tempdir()
            .context("cannot make a temporary directory")?
            .keep();
        let cleanup = cleanup::on_drop({
            let path = path.clone();
            move || {
                if let Err(error) = fs::remove_dir_all(&path) {
                    eprintln!("left behind: {}: {error}", path.display());
                }
            }
        });
        Ok(Self {
            path,
            _cleanup: cleanup,
        })
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}
