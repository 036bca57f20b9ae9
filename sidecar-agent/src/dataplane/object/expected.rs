//! What the maps have to be, as the BPF object declares them.

use std::{collections::BTreeMap, sync::OnceLock};

use anyhow::{Context, Result};
use sidecar_common::keys::PlanId;

use super::{CGROUP_OBJECT, DIGESTS};
use crate::dataplane::{
    maps::{Capacity, Digest},
    pins::{Expected, WORKLOADS},
};

/// What the maps of a set have to be, by name.
pub fn expected(capacity: &Capacity) -> Result<BTreeMap<String, Expected>> {
    let mut expected = maps(capacity)?;
    expected.remove(WORKLOADS);
    expected.insert(DIGESTS.to_owned(), digests(capacity));
    Ok(expected)
}

/// What the map has to be that all sets share.
pub fn workloads() -> Result<Expected> {
    let mut maps = maps(&Capacity::default())?;
    maps.remove(WORKLOADS)
        .context("the BPF object has no map WORKLOADS")
}

fn maps(capacity: &Capacity) -> Result<BTreeMap<String, Expected>> {
    let object = aya_obj::Object::parse(CGROUP_OBJECT).context("reading the BPF object")?;
    let entries: BTreeMap<_, _> = capacity.entries().into_iter().collect();
    let expected = object.maps.iter().filter(|(name, _)| is_shared(name));
    Ok(expected
        .map(|(name, map)| {
            let entries = entries.get(name.as_str()).copied();
            let expected = Expected {
                kind: map.map_type(),
                key: map.key_size(),
                value: map.value_size(),
                entries: entries.unwrap_or_else(|| map.max_entries()),
            };
            (name.clone(), expected)
        })
        .collect())
}

/// What the map of digests is.
pub fn digests(capacity: &Capacity) -> Expected {
    fn bytes<T>() -> u32 {
        u32::try_from(size_of::<T>()).unwrap_or(u32::MAX)
    }
    Expected {
        kind: aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_HASH as u32,
        key: bytes::<PlanId>(),
        value: bytes::<Digest>(),
        entries: capacity.plans,
    }
}

/// The maps of the object, but for those of its constants.
pub fn map_names() -> &'static [String] {
    static NAMES: OnceLock<Vec<String>> = OnceLock::new();
    NAMES.get_or_init(|| {
        let object = aya_obj::Object::parse(CGROUP_OBJECT);
        let maps = object.map(|object| object.maps).unwrap_or_default();
        maps.into_keys().filter(|name| is_shared(name)).collect()
    })
}

fn is_shared(map: &str) -> bool {
    !map.starts_with('.')
}
