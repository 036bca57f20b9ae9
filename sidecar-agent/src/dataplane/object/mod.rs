//! The BPF objects: what they need, and loading them.

mod acceleration;
mod expected;

use std::{
    io::ErrorKind,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Mutex, OnceLock, PoisonError},
};

use anyhow::{Context, Result, bail};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData},
    programs::{Program, ProgramError},
};
use sidecar_common::{keys::WorkloadId, values::WORKLOAD_SLOTS};

pub use self::acceleration::{Acceleration, JOIN};
use self::expected::map_names;
pub use self::expected::{digests, expected, workloads};
use super::{
    kernel,
    maps::{Capacity, Originals},
    pins::{HeldPins, PinDir, Set, WORKLOADS},
    sys::{self, AttachType, ProgramInfo},
};

pub(super) static CGROUP_OBJECT: &[u8] = aya::include_bytes_aligned!(env!("SIDECAR_EBPF_CGROUP"));
pub(super) static NETNS_OBJECT: &[u8] = aya::include_bytes_aligned!(env!("SIDECAR_EBPF_NETNS"));

/// The programs for cgroups, by the name of their entry point.
pub(super) const CGROUP_PROGRAMS: [(&str, AttachType); 10] = [
    ("connect4", AttachType::Connect4),
    ("connect6", AttachType::Connect6),
    ("getpeername4", AttachType::Getpeername4),
    ("getpeername6", AttachType::Getpeername6),
    ("sendmsg4", AttachType::Sendmsg4),
    ("sendmsg6", AttachType::Sendmsg6),
    ("recvmsg4", AttachType::Recvmsg4),
    ("recvmsg6", AttachType::Recvmsg6),
    ("sock_ops", AttachType::SockOps),
    ("getsockopt", AttachType::Getsockopt),
];

/// The name of the program for network namespaces.
pub const NETNS_PROGRAM: &str = "inbound";

/// The digests of complete plans, by id: only the agent reads it.
pub const DIGESTS: &str = "DIGESTS";

/// The loaded programs, and where their maps are pinned.
pub struct Objects {
    cgroup_programs: Vec<(&'static str, AttachType, OwnedFd)>,
    set: Set,
    /// Where `WORKLOADS` is pinned.
    workloads: PathBuf,
    /// Loads the copies of `sk_lookup`.
    loader: Mutex<EbpfLoader<'static>>,
    /// The maps, once all are there.
    held: HeldPins,
    /// Id of the map `WORKLOADS`.
    workloads_map: u32,
    /// What a copy of `sk_lookup` is, once one has been loaded.
    sk_lookup: OnceLock<ProgramInfo>,
    capacity: Capacity,
    /// What accelerates, once a workload has asked for it; else why it cannot be.
    acceleration: OnceLock<Result<Acceleration>>,
}

impl Objects {
    /// Loads the programs for cgroups, with the maps of this set; those that are not there are made.
    pub fn load(pins: &PinDir, set: Set, capacity: Capacity) -> Result<Self> {
        let workloads = pins.workloads();
        let mut loader = loader(set.dir(), &workloads, capacity);
        let mut cgroup = loader
            .override_global("SET", constant(u32::from(set.number))?, true)
            .override_global("KERNEL", kernel::running(), true)
            .load(CGROUP_OBJECT)
            .context("loading BPF maps")?;
        let mut cgroup_programs = Vec::new();
        for (name, attach_type) in CGROUP_PROGRAMS {
            let program = load_program(&mut cgroup, name)?;
            cgroup_programs.push((name, attach_type, program));
        }
        Ok(Self {
            cgroup_programs,
            loader: Mutex::new(loader),
            workloads_map: map_id(&cgroup)?,
            held: HeldPins::default(),
            set,
            workloads,
            sk_lookup: OnceLock::new(),
            capacity,
            acceleration: OnceLock::new(),
        })
    }

    /// The programs for cgroups: name, where it is attached, descriptor.
    pub fn cgroup_programs(
        &self,
    ) -> impl Iterator<Item = (&'static str, AttachType, BorrowedFd<'_>)> {
        self.cgroup_programs
            .iter()
            .map(|(name, attach_type, program)| (*name, *attach_type, program.as_fd()))
    }

    /// The set whose maps they use.
    pub fn set(&self) -> &Set {
        &self.set
    }

    /// Where `WORKLOADS` is pinned.
    pub fn workloads(&self) -> &Path {
        &self.workloads
    }

    /// Holds the maps, so that they do not depend on their pins any more.
    pub fn hold_maps(&mut self) -> Result<()> {
        self.held = self.set.hold(self.workloads.clone())?;
        Ok(())
    }

    /// Makes the pins of maps again that were removed behind our back. Returns which those are.
    ///
    /// # Errors
    /// If one cannot be made, or something else is in its place.
    pub fn restore_pins(&self) -> Result<Vec<PathBuf>> {
        let mut restored = self.held.restore()?;
        if let Some(Ok(acceleration)) = self.acceleration.get() {
            restored.extend(acceleration.restore_pins()?);
        }
        Ok(restored)
    }

    /// What accelerates connections to proxies, loaded when this is asked for the first time.
    ///
    /// # Errors
    /// If the kernel lacks something: what.
    pub fn acceleration(&self) -> Result<&Acceleration, &anyhow::Error> {
        let load = || {
            self.load_acceleration().inspect_err(|error| {
                tracing::warn!(
                    "nothing is accelerated until the agent is started again; connections are \
                     captured all the same; `sidecar-agent doctor` tells what is missing (SCD0114): \
                     {error:#}"
                );
            })
        };
        self.acceleration.get_or_init(load).as_ref()
    }

    /// The same, if it is wanted and can be.
    pub fn acceleration_if(&self, wanted: bool) -> Option<&Acceleration> {
        if wanted {
            self.acceleration().ok()
        } else {
            None
        }
    }

    /// The same, if it was loaded.
    pub fn loaded_acceleration(&self) -> Option<&Acceleration> {
        self.acceleration.get()?.as_ref().ok()
    }

    fn load_acceleration(&self) -> Result<Acceleration> {
        // As in `load_sk_lookup`.
        self.restore_pins()?;
        let Set { number, .. } = self.set;
        Acceleration::load(self.set.dir(), number, &self.workloads, self.capacity)
    }

    /// Names of the programs for cgroups.
    pub fn cgroup_program_names() -> impl Iterator<Item = &'static str> {
        CGROUP_PROGRAMS.iter().map(|(name, _)| *name)
    }

    /// Loads the copy of the `sk_lookup` program that serves `workload`.
    pub fn load_sk_lookup(&self, workload: WorkloadId) -> Result<OwnedFd> {
        // A pin that is gone would be made anew, with a map that nobody else knows.
        self.restore_pins()?;
        let mut loader = self.loader.lock().unwrap_or_else(PoisonError::into_inner);
        let mut object = loader
            .override_global("WORKLOAD", constant(workload)?, true)
            .load(NETNS_OBJECT)
            .context("opening BPF maps for sk_lookup")?;
        drop(loader);
        if map_id(&object)? != self.workloads_map {
            bail!(
                "the pins in {} were removed behind the agent's back; restart it",
                self.set.dir().display()
            );
        }
        let program = load_program(&mut object, NETNS_PROGRAM)?;
        if let Ok(info) = sys::program_info(program.as_fd()) {
            let _ = self.sk_lookup.set(info);
        }
        Ok(program)
    }

    /// Whether the program with this id is a copy of `sk_lookup` as it would be loaded now. Not
    /// known before the first one has been loaded.
    pub fn is_sk_lookup(&self, program: u32) -> bool {
        let found =
            sys::program_by_id(program).and_then(|program| sys::program_info(program.as_fd()));
        match (self.sk_lookup.get(), found) {
            (Some(own), Ok(found)) => own.is_same(&found),
            _ => false,
        }
    }

    /// Opens one of the shared maps.
    pub fn open_map(&self, name: &str) -> Result<MapData> {
        open_map(&self.path_of(name))
    }

    /// A handle to the map of original destinations.
    pub fn originals(&self) -> Result<Originals> {
        Originals::open(self.open_map("ORIGINAL_DST")?)
    }

    fn path_of(&self, name: &str) -> PathBuf {
        if name == WORKLOADS {
            self.workloads.clone()
        } else {
            self.set.map(name)
        }
    }
}

/// Descriptors that attaching a workload takes at most at a time: its maps, and what else is open
/// meanwhile (programs, a link, a namespace, netlink).
pub fn descriptors_to_attach() -> usize {
    const OTHERS: usize = 16;
    map_names().len() + OTHERS
}

/// A constant for programs, which a loader borrows for as long as it lives.
fn constant(number: u32) -> Result<&'static u32> {
    static NUMBERS: [u32; WORKLOAD_SLOTS as usize] = {
        let mut numbers = [0; WORKLOAD_SLOTS as usize];
        let mut at = 1;
        while at < WORKLOAD_SLOTS {
            numbers[at as usize] = at;
            at += 1;
        }
        numbers
    };
    usize::try_from(number)
        .ok()
        .and_then(|at| NUMBERS.get(at))
        .with_context(|| format!("there is no workload slot, and no set, {number}"))
}

/// Loads objects whose maps are pinned in `dir`, but for the one that all sets share. To make one
/// takes a while, as it reads all types of the kernel, whether wanted or not.
pub(super) fn loader(dir: &Path, workloads: &Path, capacity: Capacity) -> EbpfLoader<'static> {
    let mut loader = EbpfLoader::new();
    // Our programs have no relocations by them, and they take tens of megabytes.
    loader.btf(None);
    for name in map_names() {
        let path = if name == WORKLOADS {
            workloads.to_owned()
        } else {
            dir.join(name)
        };
        loader.map_pin_path(name, path);
    }
    for (name, entries) in capacity.entries() {
        loader.map_max_entries(name, entries);
    }
    loader
}

/// Opens the map that is pinned at `path`.
pub fn open_map(path: &Path) -> Result<MapData> {
    MapData::from_pin(path).with_context(|| format!("opening the map at {}", path.display()))
}

/// The id of the map `WORKLOADS` as this object has it.
fn map_id(object: &Ebpf) -> Result<u32> {
    let Some(Map::Array(map)) = object.map(WORKLOADS) else {
        bail!("a BPF object has no array map `WORKLOADS`");
    };
    Ok(map.info().context("asking for the id of a map")?.id())
}

/// How often a program is tried at the most: the verifier gives up when a signal comes, whichever it
/// is. As often as libbpf does.
const LOAD_ATTEMPTS: usize = 5;

/// Whether the verifier was interrupted.
fn is_interrupted(error: &ProgramError) -> bool {
    matches!(error, ProgramError::LoadError { io_error, .. } if io_error.kind() == ErrorKind::WouldBlock)
}

pub(super) fn load_program(object: &mut Ebpf, name: &str) -> Result<OwnedFd> {
    let program = object
        .program_mut(name)
        .with_context(|| format!("no BPF program `{name}`"))?;
    let mut attempts = LOAD_ATTEMPTS;
    loop {
        let loaded = match program {
            Program::CgroupSockAddr(program) => program.load(),
            Program::CgroupSockopt(program) => program.load(),
            Program::SockOps(program) => program.load(),
            Program::SkLookup(program) => program.load(),
            Program::SkMsg(program) => program.load(),
            _ => bail!("BPF program `{name}` is of an unexpected type"),
        };
        attempts -= 1;
        match loaded {
            Err(error) if attempts > 0 && is_interrupted(&error) => {}
            loaded => break loaded.map_err(|error| explain_load_error(name, &error))?,
        }
    }
    let fd = program
        .fd()
        .with_context(|| format!("BPF program `{name}`"))?;
    fd.as_fd()
        .try_clone_to_owned()
        .context("duplicating a program descriptor")
}

/// The verifier's log is what a kernel engineer needs; its end tells the cause.
fn explain_load_error(name: &str, error: &ProgramError) -> anyhow::Error {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let detail = match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            format!("{io_error}\n{verifier_log}")
        }
        other => other.to_string(),
    };
    anyhow::anyhow!(
        "loading BPF program `{name}` on kernel {release}: {detail}\n\
         `sidecar-agent doctor` tells what is missing here."
    )
}
