//! What each workload follows: the `WORKLOADS` array, mapped. A switch of plan is one aligned store
//! that programs see whole.

use std::{os::fd::AsFd as _, path::Path, sync::atomic::Ordering};

use anyhow::{Context as _, Result};
use aya::maps::MapData;
use sidecar_common::{
    keys::WorkloadId,
    values::{WORKLOAD_SLOTS, Word},
};

use super::sys::MappedWords;

/// The words of all workloads.
pub struct Slots(MappedWords);

impl Slots {
    /// Maps the array.
    pub fn map(map: &MapData) -> Result<Self> {
        let words = MappedWords::map(map.fd().as_fd(), WORKLOAD_SLOTS);
        Ok(Self(words.context("mapping the WORKLOADS array")?))
    }

    /// Maps the array that is pinned at a path; `None`: none is.
    pub fn open(pin: &Path) -> Option<Self> {
        Self::map(&MapData::from_pin(pin).ok()?).ok()
    }

    /// Stores the word of a workload. A slot out of range is ignored.
    pub fn store(&self, slot: WorkloadId, word: Word) {
        if let Some(at) = self.0.get(slot) {
            at.store(word.0, Ordering::Release);
        }
    }

    /// The word of a workload; zero for a slot out of range.
    pub fn load(&self, slot: WorkloadId) -> Word {
        let at = self.0.get(slot);
        Word(at.map_or(0, |at| at.load(Ordering::Acquire)))
    }

    /// The slots whose word is not zero, with it.
    pub fn in_use(&self) -> impl Iterator<Item = (WorkloadId, Word)> {
        (0..WORKLOAD_SLOTS)
            .map(|slot| (slot, self.load(slot)))
            .filter(|(_, word)| word.0 != 0)
    }
}
