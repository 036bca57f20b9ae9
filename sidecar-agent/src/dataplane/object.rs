//! The BPF objects: loading them, and opening the maps they share.

use std::{
    fs::{self, DirBuilder},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData},
    programs::{Program, ProgramError},
};
use rustix::{
    fs::{CWD, FlockOperation, Mode, OFlags, flock, fstat, openat},
    process::geteuid,
};
use sidecar_common::keys::WorkloadId;

use super::{
    Config,
    maps::{Capacity, Originals},
    sys::AttachType,
};

static CGROUP_OBJECT: &[u8] = aya::include_bytes_aligned!(env!("SIDECAR_EBPF_CGROUP"));
static NETNS_OBJECT: &[u8] = aya::include_bytes_aligned!(env!("SIDECAR_EBPF_NETNS"));

/// The programs for cgroups, by the name of their entry point.
const CGROUP_PROGRAMS: [(&str, AttachType); 10] = [
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

/// The program for a network namespace, by the name of its entry point.
pub const NETNS_PROGRAM: &str = "inbound";

/// Maps that are shared by pins, by name.
const SHARED_MAPS: [&str; 19] = [
    "WORKLOADS",
    "PLANS",
    "OUTBOUND",
    "PREFIXES",
    "INBOUND",
    "BACKENDS",
    "OWNERS",
    "INTERFACES",
    "ROUTES",
    "LOCAL_ADDRS",
    "LISTEN_INTEREST",
    "SOCKETS",
    "ORIGINAL_DST",
    "COUNTERS",
    "LOST",
    "TRACE",
    "EVENTS",
    "ASKED_FOR",
    "IDENTITIES",
];

const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// The loaded programs, and where their maps are pinned.
pub struct Objects {
    cgroup_programs: Vec<(AttachType, OwnedFd)>,
    pin_dir: PathBuf,
    capacity: Capacity,
    /// Id of the map `WORKLOADS`.
    workloads_map: u32,
    /// The pin directory, locked.
    _lock: OwnedFd,
}

impl Objects {
    /// Creates the maps and loads the programs for cgroups.
    pub fn load(config: &Config) -> Result<Self> {
        let mut objects = Self {
            _lock: prepare_pin_dir(&config.pin_dir)?,
            cgroup_programs: Vec::new(),
            workloads_map: 0,
            pin_dir: config.pin_dir.clone(),
            capacity: config.capacity,
        };
        let mut cgroup = objects
            .loader()
            .load(CGROUP_OBJECT)
            .context("loading BPF maps")?;
        objects.workloads_map = map_id(&cgroup)?;
        for (name, attach_type) in CGROUP_PROGRAMS {
            objects
                .cgroup_programs
                .push((attach_type, load_program(&mut cgroup, name)?));
        }
        Ok(objects)
    }

    /// The programs for cgroups and where each is attached.
    pub fn cgroup_programs(&self) -> impl Iterator<Item = (AttachType, BorrowedFd<'_>)> {
        self.cgroup_programs
            .iter()
            .map(|(attach_type, program)| (*attach_type, program.as_fd()))
    }

    /// Names of the programs for cgroups.
    pub fn cgroup_program_names() -> impl Iterator<Item = &'static str> {
        CGROUP_PROGRAMS.iter().map(|(name, _)| *name)
    }

    /// Loads the copy of the `sk_lookup` program that serves `workload`.
    pub fn load_sk_lookup(&self, workload: WorkloadId) -> Result<OwnedFd> {
        let mut object = self
            .loader()
            .override_global("WORKLOAD", &workload, true)
            .load(NETNS_OBJECT)
            .context("opening BPF maps for sk_lookup")?;
        // A pin that is gone would have been made anew, with a map that nobody else knows.
        if map_id(&object)? != self.workloads_map {
            bail!(
                "the pins in {} were removed behind the agent's back; restart it",
                self.pin_dir.display()
            );
        }
        load_program(&mut object, NETNS_PROGRAM)
    }

    /// Opens one of the shared maps.
    pub fn open_map(&self, name: &str) -> Result<MapData> {
        let path = self.pin_dir.join(name);
        MapData::from_pin(&path).with_context(|| format!("opening the map at {}", path.display()))
    }

    /// A handle to the map of original destinations.
    pub fn originals(&self) -> Result<Originals> {
        Originals::open(self.open_map("ORIGINAL_DST")?)
    }

    fn loader(&self) -> EbpfLoader<'static> {
        let mut loader = EbpfLoader::new();
        for name in SHARED_MAPS {
            loader.map_pin_path(name, self.pin_dir.join(name));
        }
        for (name, entries) in self.capacity.entries() {
            loader.map_max_entries(name, entries);
        }
        loader
    }
}

impl Drop for Objects {
    fn drop(&mut self) {
        let removed = remove_pins(&self.pin_dir)
            .and_then(|()| fs::remove_dir(&self.pin_dir).context("removing the pin directory"));
        if let Err(error) = removed {
            tracing::warn!("{error:#}");
        }
    }
}

/// The id of the map `WORKLOADS` as this object has it.
fn map_id(object: &Ebpf) -> Result<u32> {
    let Some(Map::Array(map)) = object.map("WORKLOADS") else {
        bail!("a BPF object has no array map `WORKLOADS`");
    };
    Ok(map.info().context("asking for the id of a map")?.id())
}

fn load_program(object: &mut Ebpf, name: &str) -> Result<OwnedFd> {
    let program = object
        .program_mut(name)
        .with_context(|| format!("no BPF program `{name}`"))?;
    match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSockopt(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        _ => bail!("BPF program `{name}` is of an unexpected type"),
    }
    .map_err(|error| explain_load_error(name, &error))?;
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
         The agent needs root (or CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN) and kernel 5.18 or newer."
    )
}

/// Makes an empty directory for our pins, and keeps others from using it for as long as the
/// descriptor lives. What a killed agent has left there is removed; anything that is not ours is
/// left alone and refused.
fn prepare_pin_dir(dir: &Path) -> Result<OwnedFd> {
    let parent = dir
        .parent()
        .context("the pin directory must be below a bpffs mount")?;
    mount_bpffs(parent)?;
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("creating {}", dir.display()));
        }
        _ => {}
    }
    let lock = openat(
        CWD,
        dir,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .with_context(|| format!("opening {}", dir.display()))?;
    // bpffs is often mounted for everybody to write: whoever owns the directory rules its pins.
    let found = fstat(&lock).with_context(|| format!("reading {}", dir.display()))?;
    if found.st_uid != geteuid().as_raw() || found.st_mode & 0o022 != 0 {
        bail!(
            "{} belongs to another user, or others may write to it; remove it",
            dir.display()
        );
    }
    flock(&lock, FlockOperation::NonBlockingLockExclusive).with_context(|| {
        format!(
            "locking {}: another agent uses it; stop that one, or give this one another --bpffs",
            dir.display()
        )
    })?;
    remove_pins(dir)?;
    let mut left = fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
    if let Some(Ok(foreign)) = left.next() {
        bail!(
            "{} is no pin of this agent; move it out of the way",
            foreign.path().display()
        );
    }
    Ok(lock)
}

fn mount_bpffs(at: &Path) -> Result<()> {
    let is_bpffs = || {
        rustix::fs::statfs(at).is_ok_and(|found| u64::try_from(found.f_type) == Ok(BPF_FS_MAGIC))
    };
    // A directory within a bpffs mount is as good as the mount itself.
    if is_bpffs() {
        return Ok(());
    }
    fs::create_dir_all(at).with_context(|| format!("creating {}", at.display()))?;
    if is_bpffs() {
        return Ok(());
    }
    rustix::mount::mount(
        "bpf",
        at,
        "bpf",
        rustix::mount::MountFlags::empty(),
        Some(c"mode=0700"),
    )
    .with_context(|| {
        format!(
            "mounting bpffs at {0}; mount it with `mount -t bpf -o mode=0700 bpf {0}`",
            at.display()
        )
    })
}

/// Removes the pins of our maps.
fn remove_pins(dir: &Path) -> Result<()> {
    for name in SHARED_MAPS {
        let path = dir.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}
