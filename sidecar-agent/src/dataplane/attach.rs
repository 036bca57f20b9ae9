//! What is attached for one workload.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use sidecar_common::{
    Addr,
    keys::{PlanId, WorkloadId},
    values::{Identity, Interface, PlanHeader},
};

use super::{
    Binding,
    maps::Maps,
    netns::Netns,
    network::{Network, RouteTo, Setup, Steering},
    object::Objects,
    sys::{self, AttachType},
    userns::IdBases,
};
use crate::compile::{EVERYWHERE, Plan, plan::interface_flags};

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
    /// What holds for every connection of that plan.
    pub header: Option<PlanHeader>,
    /// The workload's own addresses, as the kernel was told.
    pub local_addrs: BTreeSet<Addr>,
    /// Interfaces that are unlike others, by name.
    interfaces: BTreeMap<String, u32>,
    /// What of its network the kernel was told.
    told: Told,
    /// What is set up in its namespace.
    setup: Setup,
    /// Whose ids its users have on the host is not known yet.
    ids_unknown: bool,
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
            header: None,
            local_addrs: BTreeSet::new(),
            interfaces: BTreeMap::new(),
            told: Told::default(),
            setup: Setup::default(),
            ids_unknown: true,
            missed: 0,
            _links: links,
        })
    }

    /// Tells the kernel who the workload is, and which addresses are its own.
    pub fn introduce(&mut self, maps: &mut Maps) -> Result<()> {
        self.look_up_ids()?;
        self.publish_identity(maps)?;
        self.refresh(maps)
    }

    /// Sets up what a plan needs of the workload's network, and tells the kernel of it, before that
    /// plan is in force.
    pub fn prepare(&mut self, maps: &mut Maps, plan: &Plan) -> Result<()> {
        let mut network_changed = plan.interfaces != self.interfaces;
        // What is the host's is nobody's to be set up.
        if self.netns.id == Netns::open(None)?.id {
            if !plan.interfaces.is_empty() {
                bail!(
                    "interfaces are excluded, or virtual, of a workload that shares the host's \
                     network namespace; give it one of its own, or name no interfaces"
                );
            }
        } else {
            let passthrough_v6 = plan.header.flags & PlanHeader::IPV6 != 0;
            // What was set up may be an address.
            if self
                .setup
                .bring_to(&self.netns, &steering(plan), passthrough_v6)?
            {
                network_changed |= self.refresh_local_addrs(maps)?;
            }
        }
        if network_changed {
            self.interfaces.clone_from(&plan.interfaces);
            self.tell_network(maps)?;
        }
        Ok(())
    }

    /// Looks again for what changes without telling us.
    pub fn refresh(&mut self, maps: &mut Maps) -> Result<()> {
        let addresses_changed = self.refresh_local_addrs(maps)?;
        // Interfaces come and go with no address.
        if addresses_changed || !self.interfaces.is_empty() {
            self.tell_network(maps)?;
        }
        if self.ids_unknown {
            self.look_up_ids()?;
            if !self.ids_unknown {
                self.publish_identity(maps)?;
            }
        }
        Ok(())
    }

    /// Tells the kernel which addresses are the workload's own now; returns whether others are.
    fn refresh_local_addrs(&mut self, maps: &mut Maps) -> Result<bool> {
        let now: BTreeSet<Addr> = self
            .netns
            .local_addrs()?
            .into_iter()
            .map(Addr::from)
            .collect();
        if now == self.local_addrs {
            return Ok(false);
        }
        maps.set_local_addrs(self.identity.workload, &self.local_addrs, &now)?;
        self.local_addrs = now;
        Ok(true)
    }

    /// Tells the kernel by which interfaces the workload's connections leave, and from where.
    fn tell_network(&mut self, maps: &mut Maps) -> Result<()> {
        let network = Network::read(&self.netns)?;
        let workload = self.identity.workload;
        let (source_v4, source_v6) = (network.source(true), network.source(false));
        let routed = source_v4.is_err() || source_v6.is_err() || !self.interfaces.is_empty();
        let told = Told {
            interfaces: network
                .interfaces
                .iter()
                .map(|(name, index)| (*index, interface_flags(&self.interfaces, name)))
                .filter(|(_, flags)| *flags != 0)
                .collect(),
            routes: if routed { network.routes } else { Vec::new() },
        };
        if told != self.told {
            maps.set_interfaces(workload, &self.told.interfaces, &told.interfaces)?;
            maps.set_routes(workload, &self.told.routes, &told.routes)?;
            self.told = told;
        }
        let before = self.identity;
        let source = |found: Result<Option<IpAddr>, ()>| found.ok().flatten().map(Addr::from);
        self.identity.flags = if routed { Identity::ROUTED } else { 0 };
        self.identity.source_v4 = source(source_v4).map_or(0, |addr| addr.v4());
        self.identity.source_v6 = source(source_v6).unwrap_or(Addr::ANY);
        if self.identity != before {
            self.publish_identity(maps)?;
        }
        Ok(())
    }

    /// Entries in map `INTERFACES`.
    pub fn told_interfaces(&self) -> usize {
        self.told.interfaces.len()
    }

    /// Entries in map `ROUTES`.
    pub fn told_routes(&self) -> usize {
        self.told.routes.len()
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
        if let Err(error) = self.setup.bring_to(&self.netns, &BTreeSet::new(), false) {
            // Mostly: the namespace is being taken down.
            tracing::debug!("{error:#}");
        }
    }

    /// Takes what the kernel was told of the network out of the maps.
    pub fn withdraw_network(&mut self, maps: &mut Maps) {
        let told = std::mem::take(&mut self.told);
        let workload = self.identity.workload;
        // Removing cannot fail for want of room.
        let _ = maps.set_interfaces(workload, &told.interfaces, &BTreeMap::new());
        let _ = maps.set_routes(workload, &told.routes, &[]);
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

/// What of a workload's network the kernel was told.
#[derive(Default, PartialEq, Eq)]
struct Told {
    /// Interfaces that are unlike others: flags by index.
    interfaces: BTreeMap<u32, u32>,
    /// Routes, where it makes a difference which is taken.
    routes: Vec<RouteTo>,
}

/// What has to be delivered in the workload's namespace, for this plan, although it is addressed
/// to others.
fn steering(plan: &Plan) -> BTreeSet<Steering> {
    let flags = plan.header.flags;
    let has_v6 = flags & PlanHeader::IPV6 != 0;
    let everything = EVERYWHERE.iter().copied();
    let ranges: Vec<IpNet> = if flags & PlanHeader::VIRTUAL_ALL != 0 {
        everything.collect()
    } else {
        plan.virtual_ranges.iter().copied().collect()
    };
    let is_on = |v4: bool| v4 || has_v6;
    let virtuals = plan
        .interfaces
        .iter()
        .filter(|(_, flags)| **flags & Interface::VIRTUAL != 0);
    let from = virtuals.flat_map(|(name, _)| {
        ranges
            .iter()
            .filter(|net| is_on(net.addr().is_ipv4()))
            .map(|net| Steering::From {
                interface: name.clone(),
                to: *net,
            })
    });
    let is_transparent = flags & PlanHeader::TPROXY != 0;
    let answers = [true, false]
        .into_iter()
        .filter(|v4| is_transparent && is_on(*v4))
        .map(|v4| Steering::ToTransparentProxy { v4 });
    from.chain(answers).collect()
}
