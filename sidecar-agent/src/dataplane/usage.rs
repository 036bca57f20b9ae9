//! How full the maps are, and which updates the kernel refused.
//!
//! What only the agent writes is known from what it has written. `SOCKETS`, `ORIGINAL_DST` and
//! `DESTINATIONS` are written by programs as well: the sockets are counted whenever they are looked
//! at anyway (once a second), the others in batches, at most once a second. Of `ASKED_FOR` and
//! `IDENTITIES`, storage of sockets and cgroups, the kernel tells no number; the rest are arrays.

use std::{
    collections::BTreeMap,
    os::fd::AsFd as _,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use aya::maps::MapData;
use sidecar_common::{
    Endpoint,
    keys::{Slot, Tuple},
    values::Original,
};

use super::{Dataplane, attach::Attachment, object::Objects, sys};

/// How long a count of the kernel's entries is used.
const COUNT_AGAIN: Duration = Duration::from_secs(1);

/// One map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Its name.
    pub map: &'static str,
    /// Entries in it; `None`: the kernel did not tell.
    pub entries: Option<usize>,
    /// Most entries.
    pub capacity: u32,
}

/// Refused updates by map.
#[derive(Default)]
pub struct Failures(Mutex<BTreeMap<&'static str, u64>>);

impl Failures {
    /// Counts an update that failed, and says which map it was.
    pub fn note<T, E>(&self, map: &'static str, updated: Result<T, E>) -> Result<T>
    where
        Result<T, E>: Context<T, E>,
    {
        if updated.is_err() {
            self.count(map);
        }
        updated.with_context(|| format!("writing map {map}"))
    }

    /// Counts one.
    pub fn count(&self, map: &'static str) {
        *self.lock().entry(map).or_default() += 1;
    }

    /// So far, by map.
    pub fn so_far(&self) -> BTreeMap<&'static str, u64> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was counted last of what programs write.
pub struct Counted {
    /// Listening sockets.
    pub sockets: usize,
    originals: Written,
    destinations: Written,
}

impl Counted {
    /// Opens what has to be counted.
    pub fn open(objects: &Objects) -> Result<Self> {
        Ok(Self {
            sockets: 0,
            originals: Written::open::<Tuple, Original>(objects, "ORIGINAL_DST")?,
            destinations: Written::open::<Slot, Endpoint>(objects, "DESTINATIONS")?,
        })
    }
}

/// A hash map that programs write.
struct Written {
    name: &'static str,
    map: MapData,
    /// Sizes of a key and a value, in bytes.
    entry: (usize, usize),
    last: Mutex<Option<(Instant, Option<usize>)>>,
}

impl Written {
    fn open<K, V>(objects: &Objects, name: &'static str) -> Result<Self> {
        Ok(Self {
            name,
            map: objects.open_map(name)?,
            entry: (size_of::<K>(), size_of::<V>()),
            last: Mutex::default(),
        })
    }

    /// How many entries it has.
    fn entries(&self, capacity: u32) -> Option<usize> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some((at, entries)) = *last
            && now - at < COUNT_AGAIN
        {
            return entries;
        }
        let entries = sys::count_entries(self.map.fd().as_fd(), self.entry, capacity)
            .inspect_err(|error| tracing::debug!("counting the entries of {}: {error}", self.name))
            .ok();
        *last = Some((now, entries));
        entries
    }
}

impl Dataplane {
    /// How full the maps are that can be; see the module.
    #[must_use]
    pub fn maps(&self) -> Vec<Usage> {
        let capacity = self.maps.capacity();
        let total = |of: fn(&Attachment) -> usize| -> Option<usize> {
            Some(self.attachments.values().map(of).sum())
        };
        let mut usage: Vec<Usage> = self
            .usage()
            .into_iter()
            .map(|(map, entries, capacity)| Usage {
                map,
                entries: Some(entries),
                capacity,
            })
            .collect();
        let others = [
            ("WORKLOADS", Some(self.attachments.len())),
            ("INTERFACES", total(Attachment::told_interfaces)),
            ("ROUTES", total(Attachment::told_routes)),
            ("LOCAL_ADDRS", total(|of| of.local_addrs.len())),
            ("LISTEN_INTEREST", total(|of| of.listen_ports.len())),
            ("SOCKETS", Some(self.counted.sockets)),
            (
                "ORIGINAL_DST",
                self.counted.originals.entries(capacity.original_dst),
            ),
            (
                "DESTINATIONS",
                self.counted.destinations.entries(capacity.original_dst),
            ),
        ];
        let mut capacities = BTreeMap::from(capacity.entries());
        // The map of all sets has more.
        capacities.insert("WORKLOADS", capacity.workloads);
        usage.extend(others.into_iter().map(|(map, entries)| Usage {
            map,
            entries,
            capacity: capacities.get(map).copied().unwrap_or_default(),
        }));
        usage
    }

    /// What was counted of accelerated connections, by `Accelerated::NAMES`; nothing where no
    /// workload has asked for that, or the kernel cannot.
    ///
    /// # Errors
    /// If the kernel's counters cannot be read.
    pub fn accelerated(&self) -> Result<BTreeMap<String, u64>> {
        let Some(acceleration) = self.objects.loaded_acceleration() else {
            return Ok(BTreeMap::new());
        };
        let counts = acceleration.counts()?.into_iter();
        Ok(counts
            .map(|(name, count)| (name.to_owned(), count))
            .collect())
    }

    /// Updates of maps that were refused so far: the agent's, and where programs write, theirs.
    ///
    /// # Errors
    /// If the kernel's counters cannot be read.
    pub fn refused_updates(&self) -> Result<BTreeMap<&'static str, u64>> {
        use sidecar_common::values::Lost;
        let mut refused = self.maps.failures().so_far();
        let by_programs = [
            ("SOCKETS", Lost::SOCKETS),
            ("ORIGINAL_DST", Lost::ORIGINAL_DST),
        ];
        for (map, what) in by_programs {
            *refused.entry(map).or_default() += self.counters.lost(what)?;
        }
        Ok(refused)
    }
}
