//! Network namespaces: opened once by path, entered on a thread of their own.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};

use sidecar_common::kernel::Kernel;

use super::sys::{self, LinkTarget};
use crate::relay::netns::within;

/// The agent's own network namespace: the host's.
const HOST: &str = "/proc/self/ns/net";

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
    /// Opens the namespace at `path`; `None`: the host's.
    ///
    /// # Errors
    /// If there is no such namespace.
    pub fn open(path: Option<&str>) -> Result<Self> {
        let path = Path::new(path.unwrap_or(HOST));
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

    /// Whether its path still leads to the namespace.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.is_at(self.path.to_str())
    }

    /// Whether `path` (`None`: the host's) leads to the namespace that was opened.
    #[must_use]
    pub fn is_at(&self, path: Option<&str>) -> bool {
        std::fs::metadata(path.unwrap_or(HOST))
            .is_ok_and(|found| (found.dev(), found.ino()) == self.id)
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

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
