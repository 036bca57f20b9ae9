//! What is attached for one workload.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::AsFd,
    path::PathBuf,
};

use anyhow::{Context, Result, bail};
use sidecar_common::{
    Addr,
    keys::{PlanId, WorkloadId, WorkloadInterface},
    values::{Identity, PlanHeader, Word, refusing_plan},
};

use super::{
    Binding,
    cgroup::Cgroup,
    found::Found,
    hooks,
    interfaces::Interfaces,
    kernel,
    listeners::Transparency,
    maps::{Maps, ToldWorkload},
    netns::Netns,
    network::{Network, RouteTo, Setup, Sources, Steering},
    object::Objects,
    pins::{LinkSpec, Links},
    plans::RETIRED_PLAN_GRACE,
    sys::{AttachType, LinkTarget},
    userns::IdBases,
};
use crate::compile::Plan;

/// The name of the pin of a workload's link to its namespace.
pub const SK_LOOKUP: &str = "sk_lookup";

/// What the names of the pins begin with of links to the workload's cgroup, and to its proxy's if
/// that is apart.
const PREFIXES: [&str; 2] = ["", "proxy-"];

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
        let cgroups = attach(objects, workload, &links, binding)?;
        let set = objects.set().number;
        let before = found.map(|found| found.word).unwrap_or_default();
        let setup = match found {
            Some(_) if binding.netns.id != Netns::open(None)?.id => Setup::found(binding.netns)?,
            _ => Setup::default(),
        };
        let (told, replaces) = match found {
            Some(found) if found.word.set() != set => {
                (found.told.clone(), Some(found.links.clone()))
            }
            Some(found) => (found.told.clone(), None),
            None => (ToldWorkload::default(), None),
        };
        Ok(Self {
            identity: Identity {
                workload,
                proxy_cgroup: binding.proxy_cgroup.map_or(0, |cgroup| cgroup.id),
                netns: binding.netns.known_as(kernel::running())?,
                // What is not looked at yet is as it was.
                ..maps.identity(binding.cgroup.id).unwrap_or_default()
            },
            cgroups,
            netns: binding.netns.clone(),
            header: (before.set() == set)
                .then(|| maps.header(before.plan()))
                .flatten(),
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
            links,
            replaces,
        })
    }

    /// Tells the kernel who the workload is, and which addresses are its own.
    pub fn introduce(&mut self, maps: &mut Maps) -> Result<()> {
        self.look_up_ids()?;
        self.publish_identity(maps)?;
        self.refresh(maps)
    }

    /// The links that are not as [`Attachment::new`] has made them, by the names of their pins.
    pub fn broken_links(&self) -> Vec<String> {
        // The order of `cgroups` is that of `attach`.
        let of_cgroups = PREFIXES.iter().zip(&self.cgroups).flat_map(|(prefix, of)| {
            let target = LinkTarget::Cgroup(of.0);
            Objects::cgroup_program_names().map(move |name| (format!("{prefix}{name}"), target))
        });
        let of_netns = (SK_LOOKUP.to_owned(), self.netns.target());
        of_cgroups
            .chain([of_netns])
            .filter(|(name, target)| !self.links.runs(name, *target, |_| true))
            .map(|(name, _)| name)
            .collect()
    }

    /// Attaches what is not attached any more to where it was.
    pub fn attach_again(&mut self, objects: &Objects, binding: &Binding<'_>) -> Result<()> {
        self.cgroups = attach(objects, self.identity.workload, &self.links, binding)?;
        Ok(())
    }

    /// Sets up what a plan needs of the workload's network, and tells the kernel of it, before that
    /// plan is in force.
    pub fn prepare(&mut self, maps: &mut Maps, id: PlanId, plan: &Plan) -> Result<()> {
        let mut network_changed = self.interfaces.announce(id, &plan.interfaces);
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
            self.steering = Steering::declared(plan);
            let existing = if self.steering.iter().any(Steering::depends_on_names) {
                Network::read(&self.netns)?.interfaces
            } else {
                BTreeMap::new()
            };
            let steering = Steering::among(&self.steering, &existing);
            // What was set up may be an address.
            if self
                .setup
                .bring_to(&self.netns, &steering, passthrough_v6)?
            {
                network_changed |= self.refresh_local_addrs(maps)?;
            }
        }
        if network_changed {
            self.tell_network(maps)?;
        }
        Ok(())
    }

    /// Notes that the plan of its word is in force from now on, and its header.
    pub fn follow(&mut self, header: Option<PlanHeader>) {
        self.interfaces.follow(self.word.plan());
        self.header = header;
    }

    /// Looks again for what changes without telling us.
    pub fn refresh(&mut self, maps: &mut Maps) -> Result<()> {
        let addresses_changed = self.refresh_local_addrs(maps)?;
        let retired = self.interfaces.expire(RETIRED_PLAN_GRACE);
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

    /// Tells the kernel by which interfaces the workload's connections leave, and from where. Returns
    /// the interfaces that exist: their indices by name.
    fn tell_network(&mut self, maps: &mut Maps) -> Result<BTreeMap<String, u32>> {
        let network = Network::read(&self.netns)?;
        let workload = self.identity.workload;
        let Sources { routed, v4, v6 } = network.sources(!self.interfaces.is_empty());
        let told = Told {
            interfaces: self.interfaces.entries(workload, &network.interfaces),
            routes: if routed { network.routes } else { Vec::new() },
        };
        if told != self.told {
            maps.set_interfaces(&self.told.interfaces, &told.interfaces)?;
            self.told.interfaces = told.interfaces;
            maps.set_routes(workload, &self.told.routes, &told.routes)?;
            self.told.routes = told.routes;
        }
        let before = self.identity;
        self.identity.flags = if routed { Identity::ROUTED } else { 0 };
        self.identity.source_v4 = v4;
        self.identity.source_v6 = v6;
        if self.identity != before {
            self.publish_identity(maps)?;
        }
        Ok(network.interfaces)
    }

    /// What the kernel was told of it.
    pub fn told(&self) -> ToldWorkload {
        ToldWorkload {
            local_addrs: self.local_addrs.clone(),
            interfaces: self.told.interfaces.clone(),
            routes: self.told.routes.clone(),
            listen_ports: self.listen_ports.clone(),
        }
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

/// Has every program attached to the workload's cgroups and namespace. Returns the cgroups.
fn attach(
    objects: &Objects,
    workload: WorkloadId,
    links: &Links,
    binding: &Binding<'_>,
) -> Result<Vec<(u64, PathBuf)>> {
    // Programs of a cgroup run for those below it as well: once is enough.
    let proxy_apart = binding
        .proxy_cgroup
        .filter(|proxy| !proxy.path.starts_with(&binding.cgroup.path));
    let cgroups: Vec<(&str, &Cgroup)> = PREFIXES
        .into_iter()
        .zip([Some(binding.cgroup), proxy_apart])
        .filter_map(|(prefix, cgroup)| Some((prefix, cgroup?)))
        .collect();
    let mut specs = Vec::new();
    for (prefix, cgroup) in &cgroups {
        let of_cgroup = objects.cgroup_programs();
        specs.extend(of_cgroup.map(|(name, attach_type, program)| LinkSpec {
            name: format!("{prefix}{name}"),
            program: Some(program),
            target: cgroup.as_fd(),
            target_id: LinkTarget::Cgroup(cgroup.id),
            attach_type,
        }));
    }
    let has_sk_lookup = links.runs(SK_LOOKUP, binding.netns.target(), |program| {
        objects.is_sk_lookup(program)
    });
    let sk_lookup = if has_sk_lookup {
        None
    } else {
        Some(objects.load_sk_lookup(workload)?)
    };
    specs.push(LinkSpec {
        name: SK_LOOKUP.to_owned(),
        program: sk_lookup.as_ref().map(AsFd::as_fd),
        target: binding.netns.as_fd(),
        target_id: binding.netns.target(),
        attach_type: AttachType::SkLookup,
    });
    links.ensure(&specs).with_context(|| {
        let in_the_way: Vec<String> = cgroups
            .iter()
            .flat_map(|(_, cgroup)| hooks::in_the_way(&cgroup.path))
            .collect();
        let cause = if in_the_way.is_empty() {
            String::new()
        } else {
            format!(
                "; attached without BPF_F_ALLOW_MULTI, which keeps others out: {}; detach it \
                 (`bpftool cgroup detach`), or have its owner attach it with BPF_F_ALLOW_MULTI or \
                 by a link: the agent tries again by itself",
                in_the_way.join(", ")
            )
        };
        format!(
            "for cgroup {} and namespace {}{cause}",
            binding.cgroup.path.display(),
            binding.netns.path.display()
        )
    })?;
    Ok(cgroups
        .iter()
        .map(|(_, cgroup)| (cgroup.id, cgroup.path.clone()))
        .collect())
}

/// What of a workload's network the kernel was told.
#[derive(Default, PartialEq, Eq)]
struct Told {
    /// Interfaces that are unlike others, with their flags.
    interfaces: BTreeMap<WorkloadInterface, u32>,
    /// Routes, where it makes a difference which is taken.
    routes: Vec<RouteTo>,
}
