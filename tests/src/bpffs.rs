//! BPF file systems.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    sync::Once,
};

use anyhow::Context as _;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::{
    cleanup::{self, Cleanup},
    names,
};

/// What ends the names of temporary ones.
const LABEL: &str = "bpf";

/// A BPF file system of its own. Unmounted when dropped; what was pinned in it goes with it.
#[derive(Debug)]
pub struct Bpffs {
    path: PathBuf,
    _cleanup: Cleanup,
}

impl Bpffs {
    /// Mounts one on a directory of its own among the temporary files.
    ///
    /// # Errors
    /// As [`Bpffs::mount`].
    pub fn temporary() -> anyhow::Result<Self> {
        static ONCE: Once = Once::new();
        let dir = env::temp_dir();
        ONCE.call_once(|| remove_orphans(&dir));
        Self::mount(&dir.join(names::unique(LABEL)))
    }

    /// Makes the directory `at` and mounts one there. Both go when this is dropped.
    ///
    /// # Errors
    /// When there is something at that path, or it cannot be mounted, mostly for want of root.
    pub fn mount(at: &Path) -> anyhow::Result<Self> {
        fs::create_dir(at).with_context(|| format!("cannot make {}", at.display()))?;
        let cleanup = cleanup::on_drop({
            let at = at.to_owned();
            move || {
                if let Err(error) = remove(&at) {
                    eprintln!("left behind: {}: {error}", at.display());
                }
            }
        });
        mount_at(at)?;
        Ok(Self {
            path: at.to_owned(),
            _cleanup: cleanup,
        })
    }

    /// Puts an empty one in its place, as a restart of the machine does.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub fn replace(&self) -> anyhow::Result<()> {
        let at = &self.path;
        unmount(at, UnmountFlags::empty())
            .with_context(|| format!("cannot unmount {}", at.display()))?;
        mount_at(at)
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn mount_at(at: &Path) -> anyhow::Result<()> {
    mount("bpf", at, "bpf", MountFlags::empty(), None)
        .with_context(|| format!("cannot mount a BPF file system on {}", at.display()))
}

fn remove(at: &Path) -> io::Result<()> {
    // It may not have been mounted.
    let _ = unmount(at, UnmountFlags::DETACH);
    fs::remove_dir(at)
}

/// Removes what test runs that were killed have left.
fn remove_orphans(dir: &Path) {
    let ours = |name: &String| name.ends_with(LABEL);
    for name in names::orphans(dir).into_iter().filter(ours) {
        // Another test run may be at it as well.
        let _ = remove(&dir.join(name));
    }
}
