//! What there is of a dataplane, in the kernel and in this process.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use aya::{
    Pod,
    maps::{HashMap, LpmTrie, Map, MapData, MapError, MapInfo, MapType, SockHash},
    programs::{loaded_links, loaded_programs},
};
use sidecar_agent::dataplane::Capacity;
use sidecar_common::{
    Endpoint,
    keys::{
        BackendKey, OwnerKey, PlanId, PrefixKey, RouteKey, RuleKey, Slot, Tuple, WorkloadEndpoint,
        WorkloadInterface, WorkloadPort,
    },
    values::{Original, PlanHeader, Route, Rule},
};

use crate::fixture::Loaded;

/// What there is of a dataplane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Entries of every map that is no array.
    pub entries: BTreeMap<String, usize>,
    /// Workloads that follow something.
    pub words: usize,
    /// Files below the pin directory.
    pub pins: usize,
    pub links: usize,
    pub programs: usize,
    /// Of this process, by what they are.
    pub descriptors: BTreeMap<String, usize>,
}

impl Footprint {
    /// As it is now.
    pub fn of(loaded: &Loaded, capacity: &Capacity) -> anyhow::Result<Self> {
        let mut maps = BTreeSet::new();
        for pin in pins(&loaded.maps_dir())? {
            maps.insert(MapInfo::from_pin(pin)?.id());
        }
        let mut programs = BTreeSet::new();
        // Programs and links of other tests come and go meanwhile.
        for program in loaded_programs().flatten() {
            if let Ok(Some(used)) = program.map_ids()
                && used.iter().any(|map| maps.contains(map))
            {
                programs.insert(program.id());
            }
        }
        let of_ours = |program: &u32| programs.contains(program);
        let links = loaded_links().flatten().map(|link| link.program_id());
        let words = (0..capacity.workloads).map(|slot| loaded.dataplane.word(slot));
        Ok(Self {
            entries: entries(&loaded.maps_dir())?,
            words: words.filter(|word| word.plan() != 0).count(),
            pins: files(&loaded.pin_dir())?,
            links: links.filter(of_ours).count(),
            programs: programs.len(),
            descriptors: descriptors()?,
        })
    }
}

fn descriptors() -> anyhow::Result<BTreeMap<String, usize>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        // That of the listing itself is gone.
        if let Ok(what) = fs::read_link(entry?.path()) {
            let what = what.display().to_string();
            let kind = what.split_once('[').map_or(&*what, |(kind, _)| kind);
            *found.entry(kind.to_owned()).or_default() += 1;
        }
    }
    Ok(found)
}

fn files(dir: &Path) -> anyhow::Result<usize> {
    let mut found = 0;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        found += if path.is_dir() { files(&path)? } else { 1 };
    }
    Ok(found)
}

/// The pins of the maps of a set.
fn pins(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        found.push(entry?.path());
    }
    found.retain(|path| path.is_file());
    Ok(found)
}

/// Counts the entries of a map of one type.
type Counter = fn(MapData) -> Result<usize, MapError>;

/// Entries of every map that is pinned here and is no array.
pub fn entries(dir: &Path) -> anyhow::Result<BTreeMap<String, usize>> {
    let counts: [(&str, Counter); 14] = [
        ("PLANS", hash::<PlanId, PlanHeader>),
        ("DIGESTS", hash::<PlanId, [u8; 32]>),
        ("OUTBOUND", hash::<RuleKey, Rule>),
        ("PREFIXES", trie::<PrefixKey, Rule>),
        ("INBOUND", hash::<RuleKey, Rule>),
        ("BACKENDS", hash::<BackendKey, Endpoint>),
        ("OWNERS", hash::<OwnerKey, u8>),
        ("INTERFACES", hash::<WorkloadInterface, u32>),
        ("ROUTES", trie::<RouteKey, Route>),
        ("LOCAL_ADDRS", hash::<WorkloadEndpoint, u8>),
        ("LISTEN_INTEREST", hash::<WorkloadPort, u64>),
        ("SOCKETS", sockets),
        ("ORIGINAL_DST", originals),
        ("DESTINATIONS", hash::<Slot, Endpoint>),
    ];
    let mut found = BTreeMap::new();
    for (name, count) in counts {
        let entries = count(MapData::from_pin(dir.join(name))?).context(name)?;
        found.insert(name.to_owned(), entries);
    }
    for pin in pins(dir)? {
        let name = pin
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        // Storage of sockets and cgroups ends with them, and aya does not list it.
        let is_counted = !matches!(
            MapInfo::from_pin(&pin)?.map_type()?,
            MapType::Array
                | MapType::PerCpuArray
                | MapType::RingBuf
                | MapType::SkStorage
                | MapType::CgroupStorage
        );
        ensure!(found.contains_key(&name) || !is_counted, "{name} is new");
    }
    Ok(found)
}

fn hash<K: Pod, V: Pod>(map: MapData) -> Result<usize, MapError> {
    Ok(HashMap::<_, K, V>::try_from(Map::HashMap(map))?
        .keys()
        .count())
}

fn originals(map: MapData) -> Result<usize, MapError> {
    let map = HashMap::<_, Tuple, Original>::try_from(Map::LruHashMap(map))?;
    Ok(map.keys().count())
}

fn trie<K: Pod, V: Pod>(map: MapData) -> Result<usize, MapError> {
    Ok(LpmTrie::<_, K, V>::try_from(Map::LpmTrie(map))?
        .keys()
        .count())
}

fn sockets(map: MapData) -> Result<usize, MapError> {
    let map = SockHash::<_, WorkloadEndpoint>::try_from(Map::SockHash(map))?;
    Ok(map.keys().count())
}
