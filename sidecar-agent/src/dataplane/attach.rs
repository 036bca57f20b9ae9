//! What is attached for one workload.

use std::{
    collections::BTreeSet,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use anyhow::{Context, Result};
use sidecar_common::{
    Addr,
    keys::{PlanId, WorkloadId},
    values::Identity,
};

use super::{
    Binding,
    maps::Maps,
    netns::Netns,
    object::Objects,
    sys::{self, AttachType},
};

/// The links of one workload. Dropping it detaches.
pub struct Attachment {
    /// What the kernel knows of it.
    pub identity: Identity,
    /// The cgroups attached to, with their ids: the workload's, and the proxy's if it is apart.
    pub cgroups: Vec<(u64, PathBuf)>,
    /// Its network namespace.
    pub netns: Netns,
    /// The plan in force; 0: none.
    pub plan: PlanId,
    /// Ports whose listening sockets the kernel enters into `SOCKETS`.
    pub listen_ports: BTreeSet<u16>,
    /// The workload's own addresses, as the kernel was told.
    pub local_addrs: BTreeSet<Addr>,
    /// How many connections had found their socket not listening when it was last looked for.
    pub missed: u64,
    _links: Vec<OwnedFd>,
}

impl Attachment {
    /// Attaches every program.
    pub fn new(
        objects: &Objects,
        workload: WorkloadId,
        identity: Identity,
        binding: &Binding<'_>,
    ) -> Result<Self> {
        let mut links = Vec::new();
        // Programs of a cgroup run for those below it as well: once is enough.
        let proxy_apart = binding
            .proxy_cgroup
            .filter(|proxy| !proxy.path.starts_with(&binding.cgroup.path));
        let cgroups: Vec<_> = [Some(binding.cgroup), proxy_apart]
            .into_iter()
            .flatten()
            .collect();
        for cgroup in &cgroups {
            for (attach_type, program) in objects.cgroup_programs() {
                links.push(sys::link_create(program, cgroup.as_fd(), attach_type).with_context(
                    || {
                        format!(
                            "attaching {attach_type:?} to cgroup {}; a program attached there \
                             without BPF_F_ALLOW_MULTI keeps others out (see `bpftool cgroup show`)",
                            cgroup.path.display()
                        )
                    },
                )?);
            }
        }
        let sk_lookup = objects.load_sk_lookup(workload)?;
        links.push(
            sys::link_create(
                sk_lookup.as_fd(),
                binding.netns.as_fd(),
                AttachType::SkLookup,
            )
            .with_context(|| format!("attaching sk_lookup to {}", binding.netns.path.display()))?,
        );
        Ok(Self {
            identity,
            cgroups: cgroups
                .iter()
                .map(|cgroup| (cgroup.id, cgroup.path.clone()))
                .collect(),
            netns: binding.netns.clone(),
            plan: 0,
            listen_ports: BTreeSet::new(),
            local_addrs: BTreeSet::new(),
            missed: 0,
            _links: links,
        })
    }

    /// Tells the kernel who the workload is, and which addresses are its own.
    pub fn introduce(&mut self, maps: &mut Maps) -> Result<()> {
        self.publish_identity(maps)?;
        self.refresh_local_addrs(maps)
    }

    /// Tells the kernel which addresses are the workload's own now.
    pub fn refresh_local_addrs(&mut self, maps: &mut Maps) -> Result<()> {
        let now: BTreeSet<Addr> = self
            .netns
            .local_addrs()?
            .into_iter()
            .map(Addr::from)
            .collect();
        if now != self.local_addrs {
            maps.set_local_addrs(self.identity.workload, &self.local_addrs, &now)?;
            self.local_addrs = now;
        }
        Ok(())
    }

    /// Writes the identity into the storage of the workload's cgroups.
    pub fn publish_identity(&self, maps: &Maps) -> Result<()> {
        for (cgroup, path) in &self.cgroups {
            maps.set_identity(*cgroup, &self.identity)
                .with_context(|| format!("telling the kernel who {} is", path.display()))?;
        }
        Ok(())
    }

    /// Makes the cgroups strangers again: their storage outlives the links.
    pub fn withdraw_identity(&self, maps: &Maps) {
        for (cgroup, _) in &self.cgroups {
            // The cgroup may be gone, and its storage with it.
            let _ = maps.set_identity(*cgroup, &Identity::default());
        }
    }
}
