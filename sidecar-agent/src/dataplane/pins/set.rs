//! A set: maps of one ABI and size, and the links of the programs that use them.

use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, DirBuilder},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use aya::maps::{Array, MapData, MapInfo};
use sidecar_common::{
    ABI,
    keys::WorkloadId,
    values::{Meta, WORKLOAD_SLOTS},
};

use super::{HeldPins, Links, entries, number, remove_pin};

const PREFIX: &str = "set-";
const WORKLOAD_PREFIX: &str = "workload-";
const META: &str = "META";

/// What a map has to be for programs to use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// `enum bpf_map_type`.
    pub kind: u32,
    /// Bytes of a key.
    pub key: u32,
    /// Bytes of a value.
    pub value: u32,
    /// Its capacity, in entries.
    pub entries: u32,
}

/// Why a set cannot be used as it is.
#[derive(Debug, PartialEq, Eq)]
pub enum Misfit {
    /// It was not finished.
    Incomplete,
    /// Another version's.
    Abi(u32),
    /// A map is not what it has to be: broken, or of another capacity.
    Map {
        /// Its name.
        name: String,
        /// What it is; `None`: it is not there, or no map.
        found: Option<Expected>,
        /// What it has to be.
        expected: Expected,
    },
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Incomplete => f.write_str("it was not finished"),
            Self::Abi(abi) => write!(f, "it has ABI {abi}, this version {ABI}"),
            Self::Map {
                name, found: None, ..
            } => write!(f, "map {name} is missing"),
            Self::Map {
                name,
                found: Some(found),
                expected,
            } if found.entries != expected.entries && found.key == expected.key => write!(
                f,
                "map {name} has room for {} entries, {} are configured",
                found.entries, expected.entries
            ),
            Self::Map {
                name,
                found: Some(found),
                expected,
            } => write!(f, "map {name} is {found:?}, and has to be {expected:?}"),
        }
    }
}

/// A directory `set-N`.
#[derive(Clone, Debug)]
pub struct Set {
    /// N, from 1 on.
    pub number: u16,
    dir: PathBuf,
}

impl Set {
    /// The set in this directory, if its name is a set's.
    pub fn at(dir: &Path) -> Option<Self> {
        Some(Self {
            number: number(dir, PREFIX)?.try_into().ok()?,
            dir: dir.to_owned(),
        })
    }

    pub(super) fn create(parent: &Path, number: u16) -> Result<Self> {
        let dir = parent.join(format!("{PREFIX}{number}"));
        DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .with_context(|| format!("creating {}", dir.display()))?;
        Ok(Self { number, dir })
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where a map is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The directory of a workload's links.
    pub fn links(&self, workload: WorkloadId) -> Links {
        Links::at(self.dir.join(format!("{WORKLOAD_PREFIX}{workload}")))
    }

    /// The workloads that have links in it.
    pub fn workloads(&self) -> Result<BTreeMap<WorkloadId, Links>> {
        Ok(entries(&self.dir)?
            .into_iter()
            .filter_map(|path| Some((workload(&path)?, Links::at(path))))
            .collect())
    }

    /// Whether programs are attached by a link of this set.
    pub fn has_links(&self) -> Result<bool> {
        for links in self.workloads()?.values() {
            if !links.infos()?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Makes a hash map that no program uses.
    pub fn create_map(&self, name: &str, what: &Expected) -> Result<()> {
        let definition =
            aya_obj::Map::new_from_params(what.kind, what.key, what.value, what.entries, 0);
        MapData::create(definition, name, None)
            .with_context(|| format!("creating the map {name}"))?
            .pin(self.map(name))
            .with_context(|| format!("pinning {name} in {}", self.dir.display()))
    }

    /// Marks it as complete: all its maps are there.
    pub fn complete(&self) -> Result<()> {
        let meta = Meta {
            abi: ABI,
            set: self.number.into(),
        };
        let mut map = Array::<MapData, Meta>::create(1, 0).context("creating the map META")?;
        map.set(0, meta, 0).context("writing the map META")?;
        map.pin(self.map(META))
            .with_context(|| format!("pinning META in {}", self.dir.display()))
    }

    /// What its META says; `None`: it is not complete.
    pub fn meta(&self) -> Option<Meta> {
        let map = aya::maps::Map::Array(MapData::from_pin(self.map(META)).ok()?);
        Array::<_, Meta>::try_from(map).ok()?.get(&0, 0).ok()
    }

    /// Whether programs that expect these maps can use it.
    pub fn check(&self, maps: &BTreeMap<String, Expected>) -> Result<(), Misfit> {
        let meta = self.meta().ok_or(Misfit::Incomplete)?;
        if meta.abi != ABI {
            return Err(Misfit::Abi(meta.abi));
        }
        maps.iter().try_for_each(|(name, expected)| {
            let found = found(&self.map(name));
            if found.as_ref() == Some(expected) {
                Ok(())
            } else {
                Err(Misfit::Map {
                    name: name.clone(),
                    found,
                    expected: expected.clone(),
                })
            }
        })
    }

    /// Holds its maps, META as the last, and the one that all sets share.
    pub fn hold(&self, workloads: PathBuf) -> Result<HeldPins> {
        let meta = self.map(META);
        let mut maps = self.maps()?;
        maps.retain(|path| *path != meta);
        HeldPins::hold([workloads].into_iter().chain(maps).chain([meta]))
    }

    /// What is in it that is no pin of this agent's.
    pub fn strangers(&self) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for path in entries(&self.dir)? {
            if workload(&path).is_some() {
                found.extend(Links::at(path).strangers()?);
            } else if !is_ours(&path) {
                found.push(path);
            }
        }
        Ok(found)
    }

    /// The pins of its maps.
    pub fn maps(&self) -> Result<Vec<PathBuf>> {
        let mut found = entries(&self.dir)?;
        found.retain(|path| workload(path).is_none() && is_ours(path));
        Ok(found)
    }

    /// Removes its links, then its maps, then its directory. What is another's stays, and the
    /// directory with it.
    pub fn remove(&self) -> Result<()> {
        for links in self.workloads()?.values() {
            links.remove()?;
        }
        // Without META it is known to be of no use, however far this gets.
        remove_pin(&self.map(META))?;
        for path in self.maps()? {
            remove_pin(&path)?;
        }
        if entries(&self.dir)?.is_empty() {
            fs::remove_dir(&self.dir)
                .with_context(|| format!("removing {}", self.dir.display()))?;
        }
        Ok(())
    }
}

/// What the map is that is pinned at `path`; `None`: there is none.
pub fn found(path: &Path) -> Option<Expected> {
    let info = MapInfo::from_pin(path).ok()?;
    Some(Expected {
        kind: info.map_type().ok()? as u32,
        key: info.key_size(),
        value: info.value_size(),
        entries: info.max_entries(),
    })
}

fn workload(path: &Path) -> Option<WorkloadId> {
    number(path, WORKLOAD_PREFIX).filter(|slot| (1..WORKLOAD_SLOTS).contains(slot))
}

/// Whether a map is pinned here under its own name: maps of other versions of the agent may have
/// names that this one does not know.
fn is_ours(path: &Path) -> bool {
    /// The kernel keeps no more of a map's name.
    const NAME_BYTES: usize = 15;
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    let is_named = |info: &MapInfo| info.name() == &name[..name.len().min(NAME_BYTES)];
    // Where a link has its target a map has its name: that is nobody's file name.
    name == META.as_bytes() || MapInfo::from_pin(path).is_ok_and(|info| is_named(&info))
}
