//! Network namespaces: opened once by path, entered on a thread of their own.
//!
//! No path leads to a pod's namespace for as long as the pod lives: `/proc/PID/ns/net` ends with
//! its process, and another may get the number. So whoever finds one [holds](Netns::hold) it open,
//! and it is known by what readlink(2) says of such a file, `net:[INODE]`.

use std::{
    collections::BTreeMap,
    fs::File,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use anyhow::{Context, Result, bail};

use sidecar_common::kernel::Kernel;

use super::sys::{self, LinkTarget};
use crate::relay::netns::within;

/// The agent's own network namespace: the host's.
const HOST: &str = "/proc/self/ns/net";

/// The namespaces that are held, by their names. A name is nobody else's for as long as its namespace
/// is there, so that it cannot lead to another one.
static HELD: Mutex<BTreeMap<String, Weak<File>>> = Mutex::new(BTreeMap::new());

/// An open network namespace.
#[derive(Clone, Debug)]
pub struct Netns {
    file: Arc<File>,
    /// The path it was opened at.
    pub path: PathBuf,
    /// Device and inode: what tells namespaces apart.
    pub id: (u64, u64),
}

impl Netns {
    /// Opens the namespace at `path`, which may be the name of one that is held; `None`: the host's.
    ///
    /// # Errors
    /// If there is no such namespace.
    pub fn open(path: Option<&str>) -> Result<Self> {
        let path = path.unwrap_or(HOST);
        if is_name(path) {
            return Self::held(path);
        }
        let path = Path::new(path);
        let file = File::open(path).with_context(|| {
            format!(
                "opening network namespace {}: is the workload running?",
                path.display()
            )
        })?;
        let found = file
            .metadata()
            .with_context(|| format!("reading {}", path.display()))?;
        Ok(Self {
            id: (found.dev(), found.ino()),
            file: Arc::new(file),
            path: path.to_owned(),
        })
    }

    /// Takes an open namespace, which from now on can be [opened](Self::open) by its name for as long
    /// as this, or a clone of it, is there. It is not checked to be a network namespace: entering it
    /// is what fails then.
    ///
    /// # Errors
    /// If the kernel does not tell which it is.
    pub fn hold(file: File) -> Result<Self> {
        let found = file.metadata().context("reading a network namespace")?;
        let id = (found.dev(), found.ino());
        let name = format!("net:[{}]", id.1);
        let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|_, file| file.strong_count() > 0);
        let file = match held.get(&name).and_then(Weak::upgrade) {
            Some(known) => known,
            None => Arc::new(file),
        };
        held.insert(name.clone(), Arc::downgrade(&file));
        Ok(Self {
            file,
            path: name.into(),
            id,
        })
    }

    fn held(name: &str) -> Result<Self> {
        let held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(file) = held.get(name).and_then(Weak::upgrade) else {
            bail!("no network namespace {name} is held any more: is the pod running?");
        };
        drop(held);
        let found = file.metadata().with_context(|| format!("reading {name}"))?;
        Ok(Self {
            id: (found.dev(), found.ino()),
            file,
            path: name.into(),
        })
    }

    /// The name or path by which [`open`](Self::open) finds it.
    #[must_use]
    pub fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// Whether its path still leads to the namespace.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.is_at(self.path.to_str())
    }

    /// Whether `path` (`None`: the host's) leads to the namespace that was opened.
    #[must_use]
    pub fn is_at(&self, path: Option<&str>) -> bool {
        let path = path.unwrap_or(HOST);
        if is_name(path) {
            return Self::held(path).is_ok_and(|held| held.id == self.id);
        }
        std::fs::metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == self.id)
    }

    /// How links to it name it.
    #[must_use]
    pub(super) fn target(&self) -> LinkTarget {
        LinkTarget::Netns(u32::try_from(self.id.1).unwrap_or_default())
    }

    /// Runs `work` on a new thread inside the namespace.
    ///
    /// # Errors
    /// If the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        within::<_, anyhow::Error>(self.as_fd(), || Ok(work()))
            .with_context(|| format!("in the network namespace {}", self.path.display()))
    }

    /// How BPF programs know the namespace on such a kernel: see `Identity::netns`.
    ///
    /// # Errors
    /// If the namespace cannot be entered.
    pub fn known_as(&self, kernel: &Kernel) -> Result<u64> {
        if !kernel.has(Kernel::NETNS_COOKIE) {
            return Ok(self.id.1);
        }
        self.run(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            sys::netns_cookie(socket.as_fd())
        })?
        .with_context(|| format!("reading the cookie of {}", self.path.display()))
    }

    /// Every address of every interface in the namespace.
    ///
    /// # Errors
    /// If the namespace cannot be entered or its addresses not be read.
    pub fn local_addrs(&self) -> Result<Vec<IpAddr>> {
        let interfaces = self
            .run(if_addrs::get_if_addrs)?
            .with_context(|| format!("reading the addresses of {}", self.path.display()))?;
        Ok(interfaces.iter().map(if_addrs::Interface::ip).collect())
    }
}

/// Whether this is no path, but the name of a namespace.
fn is_name(path: &str) -> bool {
    path.starts_with("net:[")
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_that_is_held_is_found_by_its_name_and_no_longer() {
        // Any file will do: nothing enters it, and no other test holds it.
        let file = || File::open(std::env::current_exe().unwrap()).unwrap();
        let held = Netns::hold(file()).unwrap();
        let name = held.name();
        let again = Netns::hold(file()).unwrap();
        assert_eq!((again.id, again.name()), (held.id, name.clone()));
        drop(again);
        let opened = Netns::open(Some(&name)).unwrap();
        assert_eq!(opened.id, held.id);
        assert!(opened.is_alive() && opened.is_at(Some(&name)));
        assert!(!opened.is_at(None) && !opened.is_at(Some("net:[1]")));
        drop((held, opened));
        let error = Netns::open(Some(&name)).unwrap_err();
        assert!(error.to_string().contains("is held any more"), "{error}");
    }
}
