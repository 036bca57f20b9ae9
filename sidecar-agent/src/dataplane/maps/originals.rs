//! Original destinations, for the relay's threads.

use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use aya::maps::{HashMap, Map, MapData};
use sidecar_common::{
    Endpoint,
    keys::{Tuple, WorkloadId},
    values::Original,
};

/// The map of original destinations, by itself: what the relay's threads read.
pub struct Originals(Mutex<HashMap<MapData, Tuple, Original>>);

impl Originals {
    pub(in crate::dataplane) fn open(map: MapData) -> Result<Self> {
        Ok(Self(Mutex::new(Map::LruHashMap(map).try_into()?)))
    }

    /// Where the redirected connection with these ends was going. Answers once: whoever gets that
    /// source port next must not inherit the answer.
    #[must_use]
    pub fn take(
        &self,
        workload: WorkloadId,
        client: Endpoint,
        server: Endpoint,
    ) -> Option<Original> {
        let key = Tuple {
            workload,
            client,
            server,
        };
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let original = map.get(&key, 0).ok()?;
        let _ = map.remove(&key);
        Some(original)
    }
}
