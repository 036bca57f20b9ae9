//! Taking away what this agent has in the kernel, and nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{
    cgroup,
    netns::Netns,
    network::Setup,
    pins::{self, PinDir},
    scratch,
    slots::Slots,
    sys::{self, LinkInfo, LinkTarget},
};

/// What there is of this agent's in the kernel.
#[derive(Debug, Default, Serialize)]
pub struct Inventory {
    /// Pinned links: these capture.
    pub links: Vec<Link>,
    /// Pins of maps.
    pub maps: Vec<PathBuf>,
    /// What the agent has set up in network namespaces, by a path of each.
    pub routing: Vec<PathBuf>,
    /// Cgroups in which something was tried, by processes that were killed.
    pub cgroups: Vec<PathBuf>,
    /// Links that run programs of this agent, but are not pinned where its links are: of an agent
    /// with another pin directory, or lost. They are told, and left alone.
    pub orphans: Vec<Link>,
    /// What is in the pin directory that is not this agent's. It is left alone.
    pub strangers: Vec<PathBuf>,
}

/// A link of a program of this agent's.
#[derive(Debug, Serialize)]
pub struct Link {
    /// The kernel's number for it.
    pub id: u32,
    /// Where it is pinned; absent: not where this agent's links are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pin: Option<PathBuf>,
    /// The program's name.
    pub program: String,
    /// What it is attached to.
    pub target: String,
}

impl fmt::Display for LinkTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cgroup(0) => f.write_str("a cgroup that is gone"),
            Self::Cgroup(id) => write!(f, "cgroup {id}"),
            Self::Netns(0) => f.write_str("a network namespace that is gone"),
            Self::Netns(inode) => write!(f, "network namespace {inode}"),
            Self::Other => f.write_str("something else"),
        }
    }
}

/// Looks what there is. Changes nothing, and needs no agent to be stopped.
///
/// # Errors
/// If the pin directory or the kernel's list of links cannot be read.
pub fn inventory(pin_dir: &Path) -> Result<Inventory> {
    let mut found = Inventory::default();
    let mut own = BTreeSet::new();
    let mut namespaces = BTreeSet::new();
    for set in pins::sets(pin_dir)? {
        for links in set.workloads()?.values() {
            for (pin, info) in links.infos()? {
                own.insert(info.id);
                if let LinkTarget::Netns(inode) = info.target {
                    namespaces.insert(inode);
                }
                found.links.push(link(&info, Some(pin)));
            }
        }
        found.maps.extend(set.maps()?);
    }
    found.cgroups = cgroup::root()
        .map(|root| cgroup::tree(&root))
        .unwrap_or_default()
        .iter()
        .flat_map(|cgroup| scratch::abandoned(cgroup))
        .collect();
    let workloads = pin_dir.join(pins::WORKLOADS);
    if workloads.exists() {
        found.maps.push(workloads);
    }
    found.strangers = pins::strangers(pin_dir)?;
    found.orphans = orphans(&own)?;
    found.routing = namespaces_at(&namespaces)
        .into_values()
        .filter(|netns| Setup::found(netns).is_ok_and(|setup| !setup.steering().is_empty()))
        .map(|netns| netns.path)
        .collect();
    Ok(found)
}

/// Takes it away. From the first moment on everything passes; established connections go on.
///
/// # Errors
/// If an agent runs with these pins, or something cannot be removed.
pub fn uninstall(pin_dir: &Path) -> Result<Inventory> {
    let found = inventory(pin_dir)?;
    for cgroup in &found.cgroups {
        scratch::remove(cgroup)?;
    }
    let Some(pins) = PinDir::existing(pin_dir)? else {
        return Ok(found);
    };
    let _lock = pins.lock()?;
    // Both directions of every workload at once, whatever comes next.
    if let Some(slots) = Slots::open(&pins.workloads()) {
        for (slot, _) in slots.in_use().collect::<Vec<_>>() {
            slots.store(slot, sidecar_common::values::Word::default());
        }
    }
    for path in &found.routing {
        let undone = path
            .to_str()
            .context("a path that is not UTF-8")
            .and_then(|path| Netns::open(Some(path)))
            .and_then(|netns| Setup::found(&netns)?.undo(&netns));
        if let Err(error) = undone {
            tracing::warn!("{error:#}");
        }
    }
    for set in pins.sets()? {
        set.remove()?;
    }
    pins.remove()?;
    Ok(found)
}

fn link(info: &LinkInfo, pin: Option<PathBuf>) -> Link {
    let program = sys::program_by_id(info.program)
        .and_then(|program| sys::program_info(program.as_fd()))
        .map_or_else(|_| format!("program {}", info.program), |info| info.name);
    Link {
        id: info.id,
        pin,
        program,
        target: info.target.to_string(),
    }
}

/// Links beside `own` that run a program of an agent's.
fn orphans(own: &BTreeSet<u32>) -> Result<Vec<Link>> {
    let mut found = Vec::new();
    let mut last = 0;
    while let Some(id) = sys::next_link_id(last).context("listing the kernel's links")? {
        last = id;
        // Links come and go meanwhile.
        let Some(info) = sys::link_by_id(id)
            .ok()
            .and_then(|link| sys::link_info(link.as_fd()).ok())
        else {
            continue;
        };
        if !own.contains(&id) && pins::is_ours(info.program) {
            found.push(link(&info, None));
        }
    }
    Ok(found)
}

/// A path to each of these network namespaces, where there is one: by name, or of a process in it.
fn namespaces_at(inodes: &BTreeSet<u32>) -> BTreeMap<u32, Netns> {
    let named = ["/run/netns", "/var/run/netns"]
        .into_iter()
        .filter_map(|dir| fs::read_dir(dir).ok())
        .flat_map(|dir| dir.flatten().map(|entry| entry.path()));
    let processes = fs::read_dir("/proc")
        .into_iter()
        .flat_map(|dir| dir.flatten().map(|entry| entry.path().join("ns/net")));
    let mut found = BTreeMap::new();
    for path in named.chain(processes) {
        let inode = fs::metadata(&path).map(|found| u32::try_from(found.ino()));
        if let Ok(Ok(inode)) = inode
            && inodes.contains(&inode)
            && !found.contains_key(&inode)
            && let Ok(netns) = Netns::open(path.to_str())
        {
            found.insert(inode, netns);
        }
    }
    found
}
