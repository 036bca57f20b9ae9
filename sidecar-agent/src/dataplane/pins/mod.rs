//! What outlives the agent: maps and links, pinned below a directory of its own on a bpffs.
//!
//! ```text
//! <bpffs>/sidecar-agent/            locked (flock) by the agent that uses it
//!   WORKLOADS                       what each workload follows; shared by all sets
//!   set-1/                          maps of one ABI and size, and the links that go with them
//!     PLANS, OUTBOUND, ...
//!     META                          written last: the set is complete
//!     workload-7/                   the links of the workload in slot 7
//!       connect4, ..., sk_lookup
//! ```
//!
//! Nothing here knows what is in a map. What is not of this shape is another's: told, and left alone.

mod held;
mod links;
mod set;

use std::{
    fs::{self, DirBuilder},
    io,
    os::{fd::OwnedFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use rustix::{
    fs::{CWD, FlockOperation, Mode, OFlags, flock, fstat, openat},
    process::geteuid,
};

pub use held::HeldPins;
pub use links::{LinkSpec, Links, is_ours};
pub use set::{Expected, Set};

/// The map that all sets share.
pub const WORKLOADS: &str = "WORKLOADS";

/// The directory of this agent's pins.
pub struct PinDir {
    path: PathBuf,
    dir: OwnedFd,
}

/// Keeps other agents from a pin directory, for as long as it lives.
pub struct Lock {
    path: PathBuf,
    dir: OwnedFd,
}

impl Lock {
    /// Has it be on the directory that is at its path now; one that was removed behind our back is
    /// made again.
    ///
    /// # Errors
    /// If that cannot be made, or another agent has it.
    pub fn renew(&mut self) -> Result<()> {
        let same = |found: rustix::fs::Stat| {
            let held = fstat(&self.dir);
            held.is_ok_and(|held| (held.st_dev, held.st_ino) == (found.st_dev, found.st_ino))
        };
        if !rustix::fs::stat(&self.path).is_ok_and(same) {
            *self = PinDir::open(&self.path)?.lock()?;
        }
        Ok(())
    }
}

impl PinDir {
    /// Makes the directory if it is not there, and mounts a bpffs above it if none is.
    ///
    /// # Errors
    /// If it cannot be made, or is not the agent's alone.
    pub fn open(path: &Path) -> Result<Self> {
        let parent = path
            .parent()
            .context("the pin directory must be below a bpffs mount")?;
        mount_bpffs(parent)?;
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("creating {}", path.display()));
            }
            _ => {}
        }
        Self::at(path)
    }

    /// Opens the directory; `None` if there is none.
    ///
    /// # Errors
    /// If it is not the agent's alone.
    pub fn existing(path: &Path) -> Result<Option<Self>> {
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
            Ok(_) => Self::at(path).map(Some),
        }
    }

    fn at(path: &Path) -> Result<Self> {
        let dir = openat(
            CWD,
            path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .with_context(|| format!("opening {}", path.display()))?;
        // bpffs is often mounted for everybody to write: whoever owns the directory rules its pins.
        let found = fstat(&dir).with_context(|| format!("reading {}", path.display()))?;
        if found.st_uid != geteuid().as_raw() || found.st_mode & 0o022 != 0 {
            bail!(
                "{} belongs to another user, or others may write to it; remove it",
                path.display()
            );
        }
        Ok(Self {
            path: path.to_owned(),
            dir,
        })
    }

    /// Keeps other agents from it.
    ///
    /// # Errors
    /// If another agent has it.
    pub fn lock(&self) -> Result<Lock> {
        let path = self.path.display();
        flock(&self.dir, FlockOperation::NonBlockingLockExclusive).with_context(|| {
            format!(
                "locking {path}: another agent uses it; stop that one, or give this one another \
                 --bpffs"
            )
        })?;
        let dir = self.dir.try_clone();
        Ok(Lock {
            dir: dir.with_context(|| format!("locking {path}"))?,
            path: self.path.clone(),
        })
    }

    /// Where the map that all sets share is pinned.
    pub fn workloads(&self) -> PathBuf {
        self.path.join(WORKLOADS)
    }

    /// Makes sure that the map that all sets share, if it is there, is one.
    pub fn check_workloads(&self, expected: &Expected) -> Result<()> {
        let path = self.workloads();
        let found = set::found(&path);
        if path.exists() && found.as_ref() != Some(expected) {
            bail!(
                "{} is not the map that it has to be ({expected:?}), but {}; move it out of the way",
                path.display(),
                found.map_or_else(|| "no map".to_owned(), |found| format!("{found:?}"))
            );
        }
        Ok(())
    }

    /// Every set, oldest first.
    pub fn sets(&self) -> Result<Vec<Set>> {
        sets(&self.path)
    }

    /// A set that is not there yet: newer than all that are.
    pub fn new_set(&self) -> Result<Set> {
        let last = self.sets()?.last().map_or(0, |set| set.number);
        let number = last.checked_add(1).context(
            "65535 sets of programs have been loaded; run `sidecar-agent uninstall` and start anew",
        )?;
        Set::create(&self.path, number)
    }

    /// What is no pin of this agent's, here and in its sets.
    pub fn strangers(&self) -> Result<Vec<PathBuf>> {
        strangers(&self.path)
    }

    /// Removes the directory itself, with the map that all sets share, unless somebody has
    /// something in it. The sets must have been removed before.
    pub fn remove(self) -> Result<()> {
        remove_pin(&self.workloads())?;
        match fs::remove_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            result => result.with_context(|| format!("removing {}", self.path.display())),
        }
    }
}

/// Every set in a pin directory, oldest first.
pub fn sets(dir: &Path) -> Result<Vec<Set>> {
    let mut found: Vec<Set> = entries(dir)?
        .iter()
        .filter_map(|path| Set::at(path))
        .collect();
    found.sort_by_key(|set| set.number);
    Ok(found)
}

/// What is in a pin directory, and in its sets, that is no pin of this agent's.
pub fn strangers(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = entries(dir)?;
    found.retain(|path| Set::at(path).is_none() && !path.ends_with(WORKLOADS));
    for set in sets(dir)? {
        found.extend(set.strangers()?);
    }
    Ok(found)
}

/// What is in a directory, in the order of names. One that is gone has nothing in it.
fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        result => result
            .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
            .with_context(|| format!("reading {}", dir.display()))?,
    };
    found.sort();
    Ok(found)
}

/// The number after a prefix in a path's last part.
fn number(path: &Path, prefix: &str) -> Option<u32> {
    path.file_name()?
        .to_str()?
        .strip_prefix(prefix)?
        .parse()
        .ok()
}

/// Removes a pin; one that is not there does not matter.
fn remove_pin(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing the pin {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Whether a path is in a BPF file system.
#[must_use]
pub fn is_bpffs(path: &Path) -> bool {
    const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
    rustix::fs::statfs(path).is_ok_and(|found| u64::try_from(found.f_type) == Ok(BPF_FS_MAGIC))
}

fn mount_bpffs(at: &Path) -> Result<()> {
    // A directory within a bpffs mount is as good as the mount itself.
    if is_bpffs(at) {
        return Ok(());
    }
    fs::create_dir_all(at).with_context(|| format!("creating {}", at.display()))?;
    if is_bpffs(at) {
        return Ok(());
    }
    rustix::mount::mount(
        "bpf",
        at,
        "bpf",
        rustix::mount::MountFlags::empty(),
        Some(c"mode=0700"),
    )
    .with_context(|| {
        format!(
            "mounting bpffs at {0}; mount it with `mount -t bpf -o mode=0700 bpf {0}`",
            at.display()
        )
    })
}
