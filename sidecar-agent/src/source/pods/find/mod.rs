//! Where pods are on this node: cgroup, network namespace and root directory, found in /proc and
//! among the cgroups. Everything can be found again by the next agent; nothing is written down.
//!
//! The rules are Istio's (`cni/pkg/nodeagent`): a process belongs to the pod whose UID is in its
//! cgroups' paths; a namespace is the pod's if an interface in it has one of the pod's addresses, as
//! a process may visit others; of several, the oldest process decides.

mod cgroups;
mod processes;
mod sought;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use self::processes::Found;
pub use self::sought::{Missing, Sandbox, Sought};
use super::entry::At;
use crate::dataplane::netns::Netns;

/// The directory for [`Finder::new`] of the agent with this run directory.
#[must_use]
pub fn nowhere(run_dir: &Path) -> PathBuf {
    run_dir.join("nowhere")
}

/// Finds pods, and remembers where they are.
#[derive(Debug)]
pub struct Finder {
    proc: PathBuf,
    cgroup_root: PathBuf,
    nowhere: String,
    /// By device and inode.
    host_netns: BTreeSet<(u64, u64)>,
    known: BTreeMap<String, Known>,
    sandboxes: BTreeMap<String, Sandbox>,
}

/// A pod that was found.
#[derive(Clone, Debug)]
struct Known {
    sought: Sought,
    at: At,
    cgroup: PathBuf,
    /// The inode of that: who makes it anew makes another.
    cgroup_id: u64,
    /// Kept, so that its name leads to it.
    netns: Netns,
    /// Everything that runs by the API server was found.
    complete: bool,
}

impl Known {
    /// Whether the pod can be where it was: with the same addresses, and the same cgroup.
    fn may_be_of(&self, pod: &Sought) -> bool {
        self.sought.addresses == pod.addresses
            && fs::metadata(&self.cgroup).is_ok_and(|found| found.ino() == self.cgroup_id)
    }
}

impl Finder {
    /// Looks below `proc`, which is the host's /proc, and the root of cgroup2. `nowhere` is `/` for the
    /// unix sockets of a pod whose application does not run yet: an empty directory, which is made.
    ///
    /// # Errors
    /// If the directory cannot be made.
    pub fn new(proc: PathBuf, cgroup_root: PathBuf, nowhere: String) -> Result<Self> {
        fs::create_dir_all(&nowhere).with_context(|| format!("creating {nowhere}"))?;
        Ok(Self {
            host_netns: processes::host_netns(&proc),
            proc,
            cgroup_root,
            nowhere,
            known: BTreeMap::new(),
            sandboxes: BTreeMap::new(),
        })
    }

    /// Notes what a CNI plugin says of a pod, by its UID; what is found of it anew has to fit.
    pub fn note(&mut self, uid: &str, mut sandbox: Sandbox) {
        self.known
            .retain(|_, known| !known.sought.uids.iter().any(|of| of == uid));
        if let Some(before) = self.sandboxes.remove(uid)
            && before.netns.id == sandbox.netns.id
        {
            // The plugin is asked once for each network that the pod is in.
            sandbox.addresses.extend(before.addresses);
        }
        self.sandboxes.insert(uid.to_owned(), sandbox);
    }

    /// A sandbox of a pod ends, whose network namespace (device and inode) this was: it is not held
    /// any more. (The same is said again, much later, when the pod has another.)
    pub fn forget(&mut self, uid: &str, netns: (u64, u64)) {
        if self
            .sandboxes
            .get(uid)
            .is_some_and(|sandbox| sandbox.netns.id == netns)
        {
            self.sandboxes.remove(uid);
        }
        let is_it =
            |known: &Known| known.netns.id == netns && known.sought.uids.iter().any(|of| of == uid);
        self.known.retain(|_, known| !is_it(known));
    }

    /// Where these pods are, in their order, by one pass over /proc at most; pods that are where they
    /// were, with the same addresses and containers, are not looked for. The others are forgotten.
    ///
    /// # Errors
    /// If /proc cannot be listed.
    pub fn find(&mut self, pods: &[Sought]) -> Result<Vec<Result<At, Missing>>> {
        let wanted: BTreeSet<&str> = pods
            .iter()
            .flat_map(|pod| &pod.uids)
            .map(|uid| &**uid)
            .collect();
        self.known.retain(|uid, _| wanted.contains(uid.as_str()));
        self.sandboxes
            .retain(|uid, _| wanted.contains(uid.as_str()));
        let stale: Vec<&Sought> = pods.iter().filter(|pod| !self.is_as_it_was(pod)).collect();
        let uids: BTreeSet<&str> = stale
            .iter()
            .flat_map(|pod| &pod.uids)
            .map(|uid| &**uid)
            .collect();
        let mut missing = BTreeMap::new();
        if !stale.is_empty() {
            let cgroups = cgroups::of_pods(&self.cgroup_root, &uids);
            let mut processes = processes::of_pods(&self.proc, &uids)?;
            for pod in stale {
                let cgroup = pod.uids.iter().find_map(|uid| cgroups.get(uid));
                let of_pod: Vec<Found> = pod
                    .uids
                    .iter()
                    .filter_map(|uid| processes.remove(uid))
                    .flatten()
                    .collect();
                match self.look(pod, cgroup, of_pod) {
                    Ok(known) => {
                        self.known.insert(name(pod), known);
                    }
                    // It is where it was, and cannot be looked at just now.
                    Err(_)
                        if self
                            .known
                            .get(&name(pod))
                            .is_some_and(|of| of.may_be_of(pod)) => {}
                    Err(why) => {
                        self.known.remove(&name(pod));
                        missing.insert(name(pod), why);
                    }
                }
            }
        }
        let found = pods.iter().map(|pod| match self.known.get(&name(pod)) {
            Some(known) => Ok(known.at.clone()),
            None => Err(missing.remove(&name(pod)).unwrap_or(Missing::Netns)),
        });
        Ok(found.collect())
    }

    fn is_as_it_was(&self, pod: &Sought) -> bool {
        let known = self.known.get(&name(pod));
        known.is_some_and(|of| of.complete && of.sought == *pod && of.may_be_of(pod))
    }

    fn look(
        &self,
        pod: &Sought,
        cgroup: Option<&PathBuf>,
        processes: Vec<Found>,
    ) -> Result<Known, Missing> {
        let sandbox = pod.uids.iter().find_map(|uid| self.sandboxes.get(uid));
        if pod.addresses.is_empty() && sandbox.is_none() {
            return Err(Missing::Address);
        }
        let cgroup = cgroup.ok_or(Missing::Cgroup)?;
        let cgroup_id = fs::metadata(cgroup).map_err(|_| Missing::Cgroup)?.ino();
        if !processes.is_empty() && !processes.iter().any(|process| process.in_cgroup2) {
            return Err(Missing::NotInCgroup2);
        }
        let root = pod.application.as_deref().and_then(|id| {
            let oldest = processes.iter().find(|process| process.container == id)?;
            Some(oldest.dir.join("root").display().to_string())
        });
        let proxy_cgroup = pod
            .proxy
            .as_deref()
            .and_then(|id| cgroups::of_container(cgroup, id));
        let below_root = |path: &Path| {
            let relative = path.strip_prefix(&self.cgroup_root).unwrap_or(path);
            relative.display().to_string()
        };
        let complete = (pod.application.is_none() || root.is_some())
            && (pod.proxy.is_none() || proxy_cgroup.is_some())
            // Only the addresses of the API server outlast the sandbox.
            && !pod.addresses.is_empty();
        let (netns, addresses) = self.network(pod, sandbox, processes)?;
        Ok(Known {
            at: At {
                cgroup: below_root(cgroup),
                netns: netns.name(),
                root: root.unwrap_or_else(|| self.nowhere.clone()),
                proxy_cgroup: proxy_cgroup.as_deref().map(below_root),
                addresses,
            },
            sought: pod.clone(),
            cgroup: cgroup.clone(),
            cgroup_id,
            netns,
            complete,
        })
    }

    /// The pod's namespace, and its addresses there.
    fn network(
        &self,
        pod: &Sought,
        sandbox: Option<&Sandbox>,
        processes: Vec<Found>,
    ) -> Result<(Netns, Vec<IpAddr>), Missing> {
        let known = &pod.addresses;
        let Some(sandbox) = sandbox else {
            let found = self.netns_with(processes, known).ok_or(Missing::Netns)?;
            return Ok((found, known.clone()));
        };
        // What the CNI plugin says is newer than what the API server knows, unless a sandbox was made
        // that it was not asked about.
        if known.iter().any(|ip| sandbox.addresses.contains(ip)) {
            return Ok((sandbox.netns.clone(), known.clone()));
        }
        Ok(match self.netns_with(processes, known) {
            Some(found) => (found, known.clone()),
            None => (sandbox.netns.clone(), sandbox.addresses.clone()),
        })
    }

    /// The namespace of the oldest of these processes that is in one with any of these addresses.
    fn netns_with(&self, processes: Vec<Found>, addresses: &[IpAddr]) -> Option<Netns> {
        let mut seen = self.host_netns.clone();
        processes
            .into_iter()
            .filter(|process| seen.insert(process.netns_id))
            .find_map(|process| {
                let netns = Netns::hold(process.netns).ok()?;
                let has = netns.local_addrs().ok()?;
                has.iter()
                    .any(|ip| addresses.contains(&ip.to_canonical()))
                    .then_some(netns)
            })
    }
}

/// What a pod is known by here.
fn name(pod: &Sought) -> String {
    pod.uids.first().cloned().unwrap_or_default()
}
