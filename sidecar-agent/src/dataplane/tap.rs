//! The ring of decisions that programs fill while somebody traces, and the word that makes them.

use std::os::fd::{AsRawFd, RawFd};

use anyhow::{Context, Result};
use aya::maps::{Array, Map, MapData, PerCpuArray, RingBuf};
use sidecar_common::{Event, values::Lost};
use tokio::io::unix::AsyncFd;

use super::{
    object::{Objects, open_map},
    pins::Set,
    sys,
};

/// The reader's end. There must be one only. Becomes readable when there is an event.
pub struct Tap {
    events: RingBuf<MapData>,
    switch: Array<MapData, u64>,
    lost: PerCpuArray<MapData, u64>,
}

impl Tap {
    /// Opens the maps, with tracing off: whoever had it on is gone.
    pub(super) fn open(objects: &Objects) -> Result<Self> {
        let mut tap = Self::of_set(objects.set())?;
        tap.switch(false)?;
        Ok(tap)
    }

    /// Opens the maps of a set whose programs need not be loaded.
    pub(super) fn of_set(set: &Set) -> Result<Self> {
        Ok(Self {
            events: Map::RingBuf(open_map(&set.map("EVENTS"))?).try_into()?,
            switch: Map::Array(open_map(&set.map("TRACE"))?).try_into()?,
            lost: Map::PerCpuArray(open_map(&set.map("LOST"))?).try_into()?,
        })
    }

    /// Has the runtime watch it. Must be called within one.
    ///
    /// # Errors
    /// If the ring cannot be watched.
    pub fn watch(self) -> Result<AsyncFd<Self>> {
        sys::watch(self).context("watching the ring of decisions")
    }

    /// Has programs tell their decisions from now on, or no more.
    ///
    /// # Errors
    /// If the map refuses.
    pub fn switch(&mut self, on: bool) -> Result<()> {
        self.switch
            .set(0, u64::from(on), 0)
            .context("writing map TRACE")
    }

    /// The oldest decision that was not taken yet.
    pub fn take(&mut self) -> Option<Event> {
        loop {
            let record = self.events.next()?;
            // Nothing else is ever in the ring.
            if let Some(event) = sys::read_pod(&record) {
                return Some(event);
            }
        }
    }

    /// How many decisions found the ring full so far.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn lost(&self) -> Result<u64> {
        let counts = self.lost.get(&Lost::EVENTS, 0);
        Ok(counts.context("reading map LOST")?.iter().sum())
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.events.as_raw_fd()
    }
}
