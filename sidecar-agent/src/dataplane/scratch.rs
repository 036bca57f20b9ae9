//! Cgroups of our own, in which things are tried. They have the name of the process that made them:
//! what one that was killed has left is removed by the next one that comes by.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// What their names begin with.
const PREFIX: &str = "sidecar-agent-";

/// What they are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A connection that the programs of a workload decide: below the workload's cgroup.
    Explain,
    /// What `doctor` attaches to: below the root.
    Doctor,
}

impl Purpose {
    const ALL: [Self; 2] = [Self::Explain, Self::Doctor];

    const fn name(self) -> &'static str {
        match self {
            Self::Explain => "explain",
            Self::Doctor => "doctor",
        }
    }
}

/// A cgroup without processes. Removed when dropped.
pub struct Scratch {
    /// Its directory.
    pub path: PathBuf,
    file: File,
}

impl Scratch {
    /// Makes one below `parent`, after what others have left there is removed.
    ///
    /// # Errors
    /// If it cannot be made, mostly for want of root.
    pub fn below(parent: &Path, purpose: Purpose) -> Result<Self> {
        collect(parent);
        let name = format!("{PREFIX}{}-{}", purpose.name(), std::process::id());
        let path = parent.join(name);
        fs::create_dir(&path).with_context(|| format!("making the cgroup {}", path.display()))?;
        match File::open(&path) {
            Ok(file) => Ok(Self { path, file }),
            Err(error) => {
                let _ = remove(&path);
                Err(error).with_context(|| format!("opening the cgroup {}", path.display()))
            }
        }
    }
}

impl AsFd for Scratch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            tracing::warn!("{error:#}");
        }
    }
}

/// Those in a cgroup whose process is no more. The number may be another process' by now: then it is
/// among them once that has ended, too.
#[must_use]
pub fn abandoned(parent: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let abandoned = entries.filter(|entry| {
        let maker = entry.file_name().to_str().and_then(maker);
        maker.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    });
    abandoned.map(|entry| entry.path()).collect()
}

/// Removes those in a cgroup whose process is no more, as far as that may be done.
pub fn collect(parent: &Path) {
    for left in abandoned(parent) {
        if let Err(error) = remove(&left) {
            tracing::debug!("{error:#}");
        }
    }
}

/// Removes one.
///
/// # Errors
/// If processes or cgroups are in it, or cgroups are read-only here.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing the cgroup {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The process that made a cgroup of this name, if it is one of ours.
fn maker(name: &str) -> Option<u32> {
    let (purpose, pid) = name.strip_prefix(PREFIX)?.split_once('-')?;
    let is_ours = Purpose::ALL.iter().any(|of| of.name() == purpose);
    pid.parse().ok().filter(|_| is_ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_others_are_nobodys() {
        assert_eq!(maker("sidecar-agent-explain-12"), Some(12));
        assert_eq!(maker("sidecar-agent-doctor-3"), Some(3));
        for other in [
            "sidecar-agent-12",
            "sidecar-agent-other-12",
            "explain-12",
            "sidecar-agent-explain-x",
        ] {
            assert_eq!(maker(other), None, "{other}");
        }
    }
}
