//! What is attached for one workload.

mod links;
mod network;

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use sidecar_common::{
    Addr,
    keys::WorkloadId,
    values::{Identity, PlanHeader, Word, refusing_plan},
};

pub use self::links::SK_LOOKUP;
use self::{
    links::{Attached, attach},
    network::Told,
};
use super::{
    Binding,
    found::Found,
    interfaces::Interfaces,
    kernel,
    listeners::Transparency,
    maps::{Maps, ToldWorkload},
    netns::Netns,
    network::{Setup, Steering},
    object::Objects,
    pins::Links,
    userns::IdBases,
};

/// What is attached for one workload, and what the kernel was told of it. Dropping it detaches
/// nothing: links are pinned.
pub struct Attachment {
    /// What the kernel knows of it.
    pub identity: Identity,
    /// The cgroups attached to, with their ids: the workload's, and the proxy's if it is apart.
    pub cgroups: Vec<(u64, PathBuf)>,
    /// Its network namespace.
    pub netns: Netns,
    /// What it follows.
    pub word: Word,
    /// Ports whose listening sockets the kernel enters into `SOCKETS`.
    pub listen_ports: BTreeSet<u16>,
    /// What holds for every connection of that plan.
    pub header: Option<PlanHeader>,
    /// What is set aside to refuse everything by, once it is.
    pub reserved: Option<PlanHeader>,
    /// The workload's own addresses, as the kernel was told.
    pub local_addrs: BTreeSet<Addr>,
    /// Interfaces that are unlike others, by the plan in force, or one just retired.
    interfaces: Interfaces,
    /// What of its network the kernel was told.
    told: Told,
    /// What has to be delivered in its namespace, as its plan declares it.
    steering: BTreeSet<Steering>,
    /// What is set up in its namespace.
    setup: Setup,
    /// Whose ids its users have on the host is not known yet.
    ids_unknown: bool,
    /// What of its proxy's listeners was made transparent.
    pub transparency: Transparency,
    /// How many connections had found their socket not listening when it was last looked for.
    pub missed: u64,
    /// Connections to its proxy are accelerated.
    pub is_accelerated: bool,
    /// Its links.
    pub links: Links,
    /// Links by which another set decides until this one does.
    pub replaces: Option<Links>,
}

impl Attachment {
    /// Attaches every program, or has what is attached run the programs of `objects`.
    pub fn new(
        objects: &Objects,
        maps: &Maps,
        workload: WorkloadId,
        binding: &Binding<'_>,
        found: Option<&Found>,
    ) -> Result<Self> {
        let links = objects.set().links(workload);
        let set = objects.set().number;
        let before = found.map(|found| found.word).unwrap_or_default();
        let header = (before.set() == set)
            .then(|| maps.header(before.plan()))
            .flatten();
        let accelerated = header.is_some_and(|of| of.flags & PlanHeader::ACCELERATE != 0);
        let Attached {
            cgroups,
            is_accelerated,
        } = attach(objects, workload, &links, binding, accelerated)?;
        let has_own_netns = binding.netns.id != Netns::open(None)?.id;
        let setup = match found {
            Some(_) if has_own_netns => Setup::found(binding.netns)?,
            _ => Setup::default(),
        };
        let (told, replaces) = match found {
            Some(found) if found.word.set() != set => {
                (found.told.clone(), Some(found.links.clone()))
            }
            Some(found) => (found.told.clone(), None),
            None => (ToldWorkload::default(), None),
        };
        // What is not looked at yet is as it was.
        let before_that = maps.identity(binding.cgroup.id).unwrap_or_default();
        let own_netns = if has_own_netns {
            Identity::OWN_NETNS
        } else {
            0
        };
        Ok(Self {
            identity: Identity {
                workload,
                flags: before_that.flags & !Identity::OWN_NETNS | own_netns,
                proxy_cgroup: binding.proxy_cgroup.map_or(0, |cgroup| cgroup.id),
                netns: binding.netns.known_as(kernel::running())?,
                ..before_that
            },
            cgroups,
            netns: binding.netns.clone(),
            header,
            word: before,
            listen_ports: told.listen_ports,
            reserved: maps.header(refusing_plan(workload)),
            local_addrs: told.local_addrs,
            interfaces: Interfaces::found(before.plan(), told.interfaces.clone()),
            told: Told {
                interfaces: told.interfaces,
                routes: told.routes,
            },
            steering: setup.steering().clone(),
            setup,
            ids_unknown: true,
            transparency: Transparency::default(),
            missed: 0,
            is_accelerated,
            links,
            replaces,
        })
    }

    /// Tells the kernel who the workload is, and which addresses are its own.
    pub fn introduce(&mut self, maps: &mut Maps, grace: Duration) -> Result<()> {
        self.look_up_ids()?;
        self.publish_identity(maps)?;
        self.refresh(maps, grace)
    }

    /// Notes that the plan of its word is in force from now on, and its header.
    pub fn follow(&mut self, header: Option<PlanHeader>) {
        self.interfaces.follow(self.word.plan());
        self.header = header;
    }

    /// Looks again for what changes without telling us; plans that were left are known for `grace`.
    pub fn refresh(&mut self, maps: &mut Maps, grace: Duration) -> Result<()> {
        let addresses_changed = self.refresh_local_addrs(maps)?;
        let retired = self.interfaces.expire(grace);
        // Interfaces come and go with no address.
        if addresses_changed || retired || !self.interfaces.is_empty() {
            let existing = self.tell_network(maps)?;
            let steering = Steering::among(&self.steering, &existing);
            self.setup.steer(&self.netns, &steering)?;
        }
        if self.ids_unknown {
            self.look_up_ids()?;
            if !self.ids_unknown {
                self.publish_identity(maps)?;
            }
        }
        Ok(())
    }

    fn look_up_ids(&mut self) -> Result<()> {
        let cgroups = self.cgroups.iter().map(|(_, path)| path.as_path());
        if let Some(IdBases { uid, gid }) = IdBases::of(&self.netns, cgroups)? {
            self.identity.uid_base = uid;
            self.identity.gid_base = gid;
            self.ids_unknown = false;
        }
        Ok(())
    }

    /// Undoes what was set up in the workload's namespace.
    pub fn undo_setup(&mut self) {
        if let Err(error) = self.setup.undo(&self.netns) {
            // Mostly: the namespace is being taken down.
            tracing::debug!("{error:#}");
        }
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
