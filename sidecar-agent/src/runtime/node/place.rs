//! Where a workload is.

use std::{os::fd::OwnedFd, path::Path, sync::Arc};

use anyhow::{Context, Result};
use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::{
    dataplane::{Binding, cgroup, netns::Netns},
    resolve::workload::{Proxy, ResolvedWorkload},
};

/// Where a workload is: what an attachment is made to.
pub struct Place {
    pub cgroup: cgroup::Cgroup,
    proxy_cgroup: Option<cgroup::Cgroup>,
    pub netns: Netns,
    proxy: Proxy,
    /// What is `/` for paths of unix sockets; `None`: the agent's own.
    pub root: Option<Arc<OwnedFd>>,
    root_path: Option<String>,
}

impl Place {
    /// Opens all of it.
    ///
    /// # Errors
    /// If something is not there.
    pub fn find(root: &Path, workload: &ResolvedWorkload) -> Result<Self> {
        let proxy_cgroup = match &workload.proxy {
            Proxy::External {
                cgroup: Some(path), ..
            } => Some(cgroup::Cgroup::open(root, path)?),
            _ => None,
        };
        Ok(Self {
            cgroup: cgroup::Cgroup::open(root, &workload.cgroup)?,
            proxy_cgroup,
            netns: Netns::open(workload.netns.as_deref())?,
            proxy: workload.proxy.clone(),
            root: workload
                .root
                .as_deref()
                .map(open_root)
                .transpose()?
                .map(Arc::new),
            root_path: workload.root.clone(),
        })
    }

    /// Whether this still is where the workload is.
    pub fn is_current(&self, root: &Path, workload: &ResolvedWorkload) -> bool {
        self.proxy == workload.proxy
            && self.root_path == workload.root
            && self.cgroup.path == root.join(&workload.cgroup)
            && self.cgroup.is_alive()
            && self
                .proxy_cgroup
                .as_ref()
                .is_none_or(cgroup::Cgroup::is_alive)
            && self.netns.is_at(workload.netns.as_deref())
    }

    /// Whether the workload is elsewhere only in what attachments are not made to: containers of a pod
    /// restart, which makes another root directory, and another cgroup for the proxy within the pod's.
    pub fn can_follow(&self, root: &Path, workload: &ResolvedWorkload) -> bool {
        let within = |proxy: &Proxy| match proxy {
            Proxy::None => true,
            Proxy::External { cgroup } => cgroup
                .as_ref()
                .is_none_or(|path| root.join(path).starts_with(&self.cgroup.path)),
        };
        within(&self.proxy)
            && within(&workload.proxy)
            && self.cgroup.path == root.join(&workload.cgroup)
            && self.cgroup.is_alive()
            && self.netns.is_at(workload.netns.as_deref())
    }

    /// Whether paths of unix sockets still begin where they did.
    pub fn has_root_of(&self, other: &Self) -> bool {
        self.root_path == other.root_path
    }

    /// Whether what was attached to is still there.
    pub fn is_alive(&self) -> bool {
        self.cgroup.is_alive() && self.netns.is_alive()
    }

    /// What an attachment is made to.
    pub fn binding(&self) -> Binding<'_> {
        Binding {
            cgroup: &self.cgroup,
            proxy_cgroup: self.proxy_cgroup.as_ref(),
            netns: &self.netns,
        }
    }
}

fn open_root(path: &str) -> Result<OwnedFd> {
    openat(
        CWD,
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .with_context(|| format!("opening the workload's root directory {path}"))
}
