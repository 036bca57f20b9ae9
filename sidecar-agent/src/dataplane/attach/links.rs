//! Which links a workload has to have.

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
};

use anyhow::{Context, Result};
use sidecar_common::keys::WorkloadId;

use super::Attachment;
use crate::dataplane::{
    Binding,
    cgroup::Cgroup,
    hooks,
    object::{Acceleration, JOIN, Objects},
    pins::{LinkSpec, Links},
    sys::{AttachType, LinkTarget},
};

/// The name of the pin of a workload's link to its namespace.
pub const SK_LOOKUP: &str = "sk_lookup";

/// What the names of the pins begin with of links to the workload's cgroup, and to its proxy's if
/// that is apart.
const PREFIXES: [&str; 2] = ["", "proxy-"];

impl Attachment {
    /// The links that are not as [`Attachment::new`] has made them, by the names of their pins.
    pub fn broken_links(&self) -> Vec<String> {
        // The order of `cgroups` is that of `attach`.
        let of_cgroups = PREFIXES.iter().zip(&self.cgroups).flat_map(|(prefix, of)| {
            let target = LinkTarget::Cgroup(of.0);
            let names = Objects::cgroup_program_names().chain(self.is_accelerated.then_some(JOIN));
            names.map(move |name| (format!("{prefix}{name}"), target))
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
        let accelerated = self.is_accelerated;
        let workload = self.identity.workload;
        let attached = attach(objects, workload, &self.links, binding, accelerated)?;
        self.cgroups = attached.cgroups;
        self.is_accelerated = attached.is_accelerated;
        Ok(())
    }

    /// Has connections to the proxy be accelerated from now on, or not any more; what is accelerated
    /// stays so. Where the kernel cannot, they are not: that was said when it was found out.
    ///
    /// # Errors
    /// If the kernel refuses the link.
    pub fn accelerate(&mut self, objects: &Objects, wanted: bool) -> Result<()> {
        let acceleration = objects.acceleration_if(wanted);
        if acceleration.is_some() == self.is_accelerated {
            return Ok(());
        }
        let Some(acceleration) = acceleration else {
            for prefix in PREFIXES {
                self.links.drop_one(&format!("{prefix}{JOIN}"))?;
            }
            self.is_accelerated = false;
            return Ok(());
        };
        let open = |(id, path): &(u64, PathBuf)| {
            let file = File::open(path);
            let file = file.with_context(|| format!("opening cgroup {}", path.display()))?;
            Ok((*id, file))
        };
        let cgroups = self.cgroups.iter().map(open);
        let cgroups = cgroups.collect::<Result<Vec<(u64, File)>>>()?;
        let specs = PREFIXES.iter().zip(&cgroups);
        let specs: Vec<_> = specs
            .map(|(prefix, (id, file))| join(acceleration, prefix, *id, file.as_fd()))
            .collect();
        self.links.add(&specs)?;
        self.is_accelerated = true;
        Ok(())
    }
}

/// The link by which sockets of a cgroup join.
fn join<'a>(
    acceleration: &'a Acceleration,
    prefix: &str,
    id: u64,
    cgroup: BorrowedFd<'a>,
) -> LinkSpec<'a> {
    LinkSpec {
        name: format!("{prefix}{JOIN}"),
        program: Some(acceleration.join()),
        target: cgroup,
        target_id: LinkTarget::Cgroup(id),
        attach_type: AttachType::SockOps,
    }
}

/// What [`attach`] has come to.
pub struct Attached {
    /// The cgroups, with their ids.
    pub cgroups: Vec<(u64, PathBuf)>,
    /// Connections to the proxy are accelerated.
    pub is_accelerated: bool,
}

/// Has every program attached to the workload's cgroups and namespace; what accelerates as well, if
/// that is wanted and can be.
pub fn attach(
    objects: &Objects,
    workload: WorkloadId,
    links: &Links,
    binding: &Binding<'_>,
    accelerated: bool,
) -> Result<Attached> {
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
    let captures = specs.len();
    if let Some(acceleration) = objects.acceleration_if(accelerated) {
        let joins = cgroups
            .iter()
            .map(|(prefix, cgroup)| join(acceleration, prefix, cgroup.id, cgroup.as_fd()));
        specs.extend(joins);
    }
    let mut is_accelerated = specs.len() > captures;
    let mut ensured = links.ensure(&specs);
    // Capture does not depend on it.
    if is_accelerated && let Err(error) = &ensured {
        tracing::warn!(
            slot = workload,
            "attaching without what accelerates: {error:#}"
        );
        is_accelerated = false;
        ensured = links.ensure(&specs[..captures]);
    }
    ensured.with_context(|| {
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
    let cgroups = cgroups.iter();
    Ok(Attached {
        cgroups: cgroups
            .map(|(_, cgroup)| (cgroup.id, cgroup.path.clone()))
            .collect(),
        is_accelerated,
    })
}
