//! A node as kubelet and a container runtime have it: pods' cgroups, sandboxes made by a chain of real
//! CNI plugins, containers run by runc.

mod chain;
mod container;
mod groups;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use self::groups::Groups;
pub use self::{
    chain::{Chain, Refused, Sandbox},
    container::Container,
};
use crate::{Cgroup, Namespace, tempdir::TempDir};

/// Where CNI plugins are.
const PLUGINS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// A node of its own: a network namespace that is its host's, and a place among the cgroups.
#[derive(Debug)]
pub struct Node {
    groups: Groups,
    netns: Namespace,
    dir: TempDir,
}

/// What this machine lacks for a node, if anything.
#[must_use]
pub fn missing() -> Option<&'static str> {
    let runc = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"];
    if !runc.iter().any(|dir| Path::new(dir).join("runc").exists()) {
        return Some("runc");
    }
    plugin("ptp")
        .is_none()
        .then_some("the CNI plugin ptp (containernetworking-plugins)")
}

fn plugin(name: &str) -> Option<PathBuf> {
    PLUGINS
        .iter()
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.exists())
}

impl Node {
    /// Makes one.
    ///
    /// # Errors
    /// For want of root, or of cgroup2.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self {
            groups: Groups::new()?,
            netns: Namespace::new("node")?,
            dir: TempDir::new("sct-node-")?,
        })
    }

    /// Its host's network namespace.
    #[must_use]
    pub fn netns(&self) -> &Namespace {
        &self.netns
    }

    /// Its directory for files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The path of a pod's cgroup in every hierarchy, as kubelet's driver `cgroupfs` has it.
    #[must_use]
    pub fn pod_cgroup(&self, uid: &str) -> String {
        format!("{}/kubepods/besteffort/pod{uid}", self.groups.name())
    }

    /// Makes a pod's cgroup, as kubelet does before it asks for a sandbox.
    ///
    /// # Errors
    /// For want of root.
    pub fn make_pod_cgroup(&self, uid: &str) -> anyhow::Result<()> {
        self.groups.make(&self.pod_cgroup(uid))
    }

    /// Removes a pod's cgroup, whose containers have ended.
    ///
    /// # Errors
    /// When one has not.
    pub fn remove_pod_cgroup(&self, uid: &str) -> anyhow::Result<()> {
        self.groups.remove(&self.pod_cgroup(uid))
    }

    /// The cgroup of another container of a pod, for processes that are started without a runtime.
    ///
    /// # Errors
    /// When the pod has none of its own, or such a container already.
    pub fn container_cgroup(&self, uid: &str, id: &str) -> anyhow::Result<Cgroup> {
        Cgroup::at(&format!("{}/{id}", self.pod_cgroup(uid)))
    }

    /// Moves a process into a cgroup below [`pod_cgroup`](Self::pod_cgroup), in hierarchies of version
    /// 1 only: as a runtime does that knows no other.
    ///
    /// # Errors
    /// For want of root, or of such hierarchies.
    pub fn move_in_v1_only(&self, pid: u32, uid: &str, id: &str) -> anyhow::Result<()> {
        self.groups
            .move_in_v1(pid, &format!("{}/{id}", self.pod_cgroup(uid)))
    }

    /// Whether there are hierarchies of version 1.
    #[must_use]
    pub fn is_hybrid(&self) -> bool {
        self.groups.is_hybrid()
    }

    /// Runs a container of a pod by runc, in the cgroup that its id names.
    ///
    /// # Errors
    /// When runc fails.
    pub fn run(
        &self,
        uid: &str,
        netns: &Namespace,
        id: &str,
        args: &[&str],
    ) -> anyhow::Result<Container> {
        let cgroup = format!("/{}/{id}", self.pod_cgroup(uid));
        Container::run(self.dir(), &cgroup, netns, id, args)
    }

    /// A network of this node, of version 1.0.0: `ptp`, and what comes after it.
    #[must_use]
    pub fn network(&self, subnet: &str, more: &[Value]) -> Chain<'_> {
        let ptp = json!({
            "type": "ptp",
            "ipam": {
                "type": "host-local",
                "subnet": subnet,
                "routes": [{"dst": "0.0.0.0/0"}],
                "dataDir": self.dir().join("ipam"),
            },
        });
        Chain::new(
            &self.netns,
            "1.0.0",
            std::iter::once(ptp).chain(more.iter().cloned()),
        )
    }
}
