//! What accelerates connections to proxies: programs and maps of their own, loaded when the first
//! workload asks for them.

use std::{
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::{Map, MapData, PerCpuArray},
};
use sidecar_common::accelerate::Accelerated;

use super::{constant, load_program, loader, open_map};
use crate::dataplane::{kernel, maps::Capacity, pins::HeldPins, sys};

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("SIDECAR_EBPF_ACCELERATE"));

/// Its maps; with those of the others they are a set's.
const MAPS: [&str; 3] = ["HOPS", "MEMBERS", "ACCELERATED"];

/// The `sock_ops` program of workloads that ask for it.
pub const JOIN: &str = "join";

/// The loaded programs.
pub struct Acceleration {
    join: OwnedFd,
    held: HeldPins,
    counters: PerCpuArray<MapData, u64>,
}

impl Acceleration {
    /// Loads them, with the maps that are pinned in `dir`; of their own those that are not there are
    /// made. `set` is what the programs are told to be. Connections that an earlier agent's programs
    /// accelerate go on with those.
    ///
    /// # Errors
    /// If the kernel lacks something: what.
    pub fn load(dir: &Path, set: u16, workloads: &Path, capacity: Capacity) -> Result<Self> {
        let offsets = kernel::socket_offsets()?;
        let mut loader = loader(dir, workloads, capacity);
        for name in MAPS {
            loader.map_pin_path(name, dir.join(name));
        }
        let mut object = loader
            .override_global("SET", constant(u32::from(set))?, true)
            .override_global("OFFSETS", &offsets, true)
            .load(OBJECT)
            .context("making the maps of acceleration")?;
        let join = load_program(&mut object, JOIN)?;
        let hand_over = load_program(&mut object, "hand_over")?;
        sys::attach_to_sockets(hand_over.as_fd(), fd_of(&object, "MEMBERS")?)
            .context("attaching sk_msg to the map MEMBERS")?;
        Ok(Self {
            join,
            held: HeldPins::hold(MAPS.map(|name| dir.join(name)))?,
            counters: Map::PerCpuArray(open_map(&dir.join("ACCELERATED"))?).try_into()?,
        })
    }

    /// The program to attach to cgroups.
    pub fn join(&self) -> BorrowedFd<'_> {
        self.join.as_fd()
    }

    /// Makes the pins of its maps again that were removed.
    ///
    /// # Errors
    /// If one cannot be made, or something else is in its place.
    pub fn restore_pins(&self) -> Result<Vec<PathBuf>> {
        self.held.restore()
    }

    /// What was counted, by the names of [`Accelerated::NAMES`].
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn counts(&self) -> Result<Vec<(&'static str, u64)>> {
        let indices = 0..Accelerated::COUNT;
        indices
            .zip(Accelerated::NAMES)
            .map(|(index, name)| {
                let counts = self.counters.get(&index, 0);
                let counts = counts.context("reading map ACCELERATED")?;
                Ok((name, counts.iter().sum()))
            })
            .collect()
    }
}

fn fd_of<'a>(object: &'a Ebpf, name: &str) -> Result<BorrowedFd<'a>> {
    match object.map(name) {
        Some(Map::SockHash(map)) => Ok(map.fd().as_fd()),
        _ => anyhow::bail!("a BPF object has no sockhash `{name}`"),
    }
}
