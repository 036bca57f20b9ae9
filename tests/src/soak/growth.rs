//! What the agent takes, in the kernel and of the process.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, ensure};
use aya::{maps::MapInfo, programs::links::PinnedLink};

use super::{Check, world::World};
use crate::poll::{DEADLINE, poll_result};

/// What there is at one moment.
pub struct Footprint {
    /// Sets of maps.
    sets: usize,
    /// Maps that are pinned.
    maps: usize,
    /// Links that are pinned.
    links: usize,
    /// Entries in the maps whose fill the agent tells, by map.
    entries: BTreeMap<String, u64>,
    /// The agent's open descriptors.
    descriptors: usize,
    /// The agent's resident memory, in KiB.
    resident: u64,
}

impl Footprint {
    /// Looks.
    ///
    /// # Errors
    /// When the agent does not answer, or /proc cannot be read.
    pub fn of(world: &World) -> anyhow::Result<Self> {
        let agent = world.lab.agent()?;
        let pid = agent.pid().context("the agent is not running")?;
        let pins = agent.bpffs().join("sidecar-agent");
        let (mut sets, mut maps, mut links) = (0, 0, 0);
        for path in list(&pins)? {
            if !path.is_dir() {
                continue;
            }
            sets += 1;
            for path in list(&path)? {
                if path.is_dir() {
                    links += list(&path)?
                        .iter()
                        .filter(|pin| PinnedLink::from_pin(pin).is_ok())
                        .count();
                } else {
                    maps += usize::from(MapInfo::from_pin(&path).is_ok());
                }
            }
        }
        let status = agent.status()?;
        let entries = status["maps"].as_array().into_iter().flatten();
        Ok(Self {
            sets,
            maps,
            links,
            entries: entries
                .filter_map(|map| Some((map["map"].as_str()?.to_owned(), map["entries"].as_u64()?)))
                .collect(),
            descriptors: list(Path::new(&format!("/proc/{pid}/fd")))?.len(),
            resident: resident(pid)?,
        })
    }

    /// Whether there is more than there was, once what was just retired had its time to go.
    ///
    /// # Errors
    /// As [`Footprint::of`].
    pub fn settled(&self, world: &World) -> anyhow::Result<Vec<Check>> {
        // What is more at the deadline is told by the checks.
        let _ = poll_result(DEADLINE, "what was retired to go", || {
            let checks = self.compare(&Self::of(world)?);
            ensure!(checks.iter().all(|check| check.ok));
            Ok(())
        });
        Ok(self.compare(&Self::of(world)?))
    }

    fn compare(&self, now: &Self) -> Vec<Check> {
        let same = |what: &str, before: usize, now: usize| {
            Check::new(what, before == now, format!("{before} before, {now} now"))
        };
        let mut checks = vec![
            same("sets of maps", self.sets, now.sets),
            same("maps", self.maps, now.maps),
            same("links", self.links, now.links),
        ];
        let grown: Vec<String> = now
            .entries
            .iter()
            .filter(|(map, entries)| **entries > self.entries.get(*map).copied().unwrap_or(0))
            .map(|(map, entries)| format!("{map} {:?} -> {entries}", self.entries.get(map)))
            .collect();
        checks.push(Check::new(
            "entries of maps",
            grown.is_empty(),
            if grown.is_empty() {
                format!("{} maps, none has more", now.entries.len())
            } else {
                grown.join(", ")
            },
        ));
        // A descriptor more or less may be on its way.
        checks.push(Check::new(
            "descriptors of the agent",
            now.descriptors <= self.descriptors + 4,
            format!("{} before, {} now", self.descriptors, now.descriptors),
        ));
        checks.push(Check::new(
            "memory of the agent",
            now.resident <= self.resident + self.resident / 4,
            format!("{} KiB before, {} KiB now", self.resident, now.resident),
        ));
        checks
    }
}

fn list(dir: &Path) -> anyhow::Result<Vec<std::path::PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

/// The resident memory of a process, in KiB.
///
/// # Errors
/// When /proc does not tell.
pub fn resident(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number
        .context("/proc tells no resident memory")?
        .parse()
        .context("a number that is none")
}
