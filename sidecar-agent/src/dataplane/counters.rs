//! What the programs count.

use std::{os::fd::AsFd as _, sync::atomic::Ordering};

use anyhow::{Context, Result};
use aya::maps::{Map, MapData, PerCpuArray};
use sidecar_common::{
    Path, Reason,
    decide::Direction,
    keys::WorkloadId,
    values::{DECISION_SLOTS, decision_slot},
};

use super::{
    maps::Capacity,
    object::{Objects, open_map},
    pins::Set,
    sys,
};

/// Whose counters hold what workloads that are gone had counted.
const GONE: WorkloadId = 0;

/// Decisions of one kind, and how many there were.
pub type Count = (Direction, Path, Reason, u64);

/// The counters of decisions, and of what was lost.
pub struct Counters {
    /// Mapped: reading the words of a node full of workloads takes no system call.
    decisions: sys::MappedWords,
    lost: PerCpuArray<MapData, u64>,
}

impl Counters {
    /// Opens the maps by their pins.
    pub fn open(objects: &Objects, capacity: &Capacity) -> Result<Self> {
        Self::of_set(objects.set(), capacity)
    }

    /// The same, of a set whose programs need not be loaded.
    pub fn of_set(set: &Set, capacity: &Capacity) -> Result<Self> {
        let decisions = open_map(&set.map("COUNTERS"))?;
        Ok(Self {
            decisions: sys::MappedWords::map(decisions.fd().as_fd(), capacity.counters())
                .context("mapping the COUNTERS array")?,
            lost: Map::PerCpuArray(open_map(&set.map("LOST"))?).try_into()?,
        })
    }

    /// A workload's decisions since it was attached, without zeros.
    pub fn of(&self, workload: WorkloadId) -> Vec<Count> {
        let counts = kinds().map(|(direction, path, reason)| {
            let slot = decision_slot(direction, path, reason as u8);
            (direction, path, reason, self.read(workload, slot))
        });
        counts.filter(|(.., count)| *count != 0).collect()
    }

    /// Decisions of all workloads that are gone, without zeros.
    pub fn of_gone(&self) -> Vec<Count> {
        self.of(GONE)
    }

    /// Decisions of a workload of one kind.
    fn one(&self, workload: WorkloadId, direction: Direction, path: Path, reason: Reason) -> u64 {
        self.read(workload, decision_slot(direction, path, reason as u8))
    }

    /// How many inbound connections of a workload found their socket not listening.
    pub fn missed(&self, workload: WorkloadId) -> u64 {
        let missed = [
            (Path::Deny, Reason::TargetNotListening),
            (Path::Pass, Reason::ProxyGone),
        ];
        missed
            .map(|(path, reason)| self.one(workload, Direction::Inbound, path, reason))
            .iter()
            .sum()
    }

    /// Adds a workload's decisions to those of the workloads that are gone; its own begin at zero.
    /// No program may be counting for it any more.
    pub fn retire(&self, workload: WorkloadId) {
        for slot in 0..DECISION_SLOTS {
            let of = |workload: WorkloadId| self.decisions.get(workload * DECISION_SLOTS + slot);
            if let (Some(own), Some(gone)) = (of(workload), of(GONE)) {
                gone.fetch_add(own.swap(0, Ordering::Relaxed), Ordering::Relaxed);
            }
        }
    }

    /// How often something was lost, over all CPUs: one of `sidecar_common::values::Lost`.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn lost(&self, what: u32) -> Result<u64> {
        let values = self.lost.get(&what, 0).context("reading map LOST")?;
        Ok(values.iter().sum())
    }

    fn read(&self, workload: WorkloadId, slot: u32) -> u64 {
        self.decisions
            .get(workload * DECISION_SLOTS + slot)
            .map_or(0, |word| word.load(Ordering::Relaxed))
    }
}

/// Every kind of decision, by reason.
fn kinds() -> impl Iterator<Item = (Direction, Path, Reason)> {
    let directions = [Direction::Outbound, Direction::Inbound];
    Reason::ALL.iter().flat_map(move |&reason| {
        directions
            .into_iter()
            .flat_map(move |direction| Path::ALL.iter().map(move |&path| (direction, path, reason)))
    })
}
