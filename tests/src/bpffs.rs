//! BPF file systems.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::cleanup::{self, Cleanup};

/// A BPF file system of its own. Unmounted when dropped; what was pinned in it goes with it.
#[derive(Debug)]
pub struct Bpffs {
    path: PathBuf,
    _cleanup: Cleanup,
}

impl Bpffs {
    /// Makes the directory `at` and mounts one there. Both go when this is dropped.
    ///
    /// # Errors
    /// When there is something at that path, or it cannot be mounted, mostly for want of root.
    pub fn mount(at: &Path) -> anyhow::Result<Self> {
        fs::create_dir(at).with_context(|| format!("cannot make {}", at.display()))?;
        let cleanup = cleanup::on_drop({
            let at = at.to_owned();
            move || {
                // It may not have been mounted.
                let _ = unmount(&at, UnmountFlags::DETACH);
                if let Err(error) = fs::remove_dir(&at) {
                    eprintln!("left behind: {}: {error}", at.display());
                }
            }
        });
        mount("bpf", at, "bpf", MountFlags::empty(), None)
            .with_context(|| format!("cannot mount a BPF file system on {}", at.display()))?;
        Ok(Self {
            path: at.to_owned(),
            _cleanup: cleanup,
        })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}
