//! What an agent has in the kernel: maps, and how long its programs have run.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
};

use anyhow::Context as _;
use aya::{maps::MapInfo, programs::loaded_programs};

use crate::Agent;

/// How often a program ran, and for how long altogether, in ns. Counted while somebody holds
/// `BPF_ENABLE_STATS`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Runs {
    /// How often.
    pub count: u64,
    /// How long.
    pub nanos: u64,
}

/// The agent's programs, by their name: copies of one are counted together.
///
/// # Errors
/// When its pins cannot be read.
pub fn programs(agent: &Agent) -> anyhow::Result<BTreeMap<String, Runs>> {
    let ours = pinned_maps(agent)?;
    let mut programs: BTreeMap<String, Runs> = BTreeMap::new();
    // One that has gone while we looked.
    for program in loaded_programs().flatten() {
        let maps = program.map_ids().ok().flatten().unwrap_or_default();
        if !maps.iter().any(|map| ours.contains(map)) {
            continue;
        }
        let name = program.name_as_str().unwrap_or_default().to_owned();
        let runs = programs.entry(name).or_default();
        runs.count += program.run_count();
        runs.nanos += u64::try_from(program.run_time().as_nanos())?;
    }
    Ok(programs)
}

/// Bytes of the kernel's memory that the agent's maps take, by name of the map: of those that are
/// pinned, and of those that only a program has.
///
/// # Errors
/// When its pins or a map's `memlock` cannot be read.
pub fn map_bytes(agent: &Agent) -> anyhow::Result<BTreeMap<String, u64>> {
    let pinned = pinned_maps(agent)?;
    let mut all = pinned.clone();
    for program in loaded_programs().flatten() {
        let maps = program.map_ids().ok().flatten().unwrap_or_default();
        if maps.iter().any(|map| pinned.contains(map)) {
            all.extend(maps);
        }
    }
    let mut bytes: BTreeMap<String, u64> = BTreeMap::new();
    for id in all {
        let Ok(info) = MapInfo::from_id(id) else {
            continue;
        };
        let fd = info.fd()?;
        let file = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
        let memlock = text.lines().find_map(|line| line.strip_prefix("memlock:"));
        let memlock: u64 = memlock.context("no memlock")?.trim().parse()?;
        let name = info.name_as_str().unwrap_or_default().to_owned();
        *bytes.entry(name).or_default() += memlock;
    }
    Ok(bytes)
}

fn pinned_maps(agent: &Agent) -> anyhow::Result<BTreeSet<u32>> {
    let mut ids = BTreeSet::new();
    collect(&agent.bpffs().join("sidecar-agent"), &mut ids)?;
    Ok(ids)
}

fn collect(dir: &Path, ids: &mut BTreeSet<u32>) -> anyhow::Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, ids)?;
        } else if let Ok(info) = MapInfo::from_pin(&path) {
            // Links are pinned there, too.
            ids.insert(info.id());
        }
    }
    Ok(())
}
