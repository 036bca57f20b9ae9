//! Trying out what we need of the kernel, on things of our own: our programs and maps are loaded
//! and attached to a new cgroup and a new network namespace, which go away again. Nobody's traffic
//! is touched, and nothing is left.

use std::{
    fs::{self, File},
    net::TcpListener,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, anyhow};
use aya::{
    Ebpf,
    maps::{Map, MapData, MapType, SockHash},
    sys::is_map_supported,
};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};
use sidecar_common::{
    Addr, Endpoint,
    keys::{WorkloadEndpoint, WorkloadId},
    values::{Identity, WORKLOAD_SLOTS},
};

use super::{
    kernel,
    maps::Capacity,
    object::{Acceleration, CGROUP_OBJECT, CGROUP_PROGRAMS, NETNS_OBJECT, load_program, loader},
    pins::WORKLOADS,
    scratch::{self, Purpose},
    sys::{self, AttachType, MappedWords},
};

/// A workload that nobody is.
const NOBODY: WorkloadId = 1;

/// Just enough.
const CAPACITY: Capacity = Capacity {
    workloads: 2,
    plans: 2,
    rules: 16,
    sockets: 4,
    original_dst: 16,
};

/// Something that we need of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Namespaces and a BPF file system to try the others in.
    Scratch,
    /// Our maps, of all their types.
    Maps,
    /// One of our programs, by name.
    Program(&'static str),
    /// A BPF link of each of our programs to a cgroup.
    CgroupLink,
    /// A BPF link to a network namespace.
    NetnsLink,
    /// Cgroup storage whose key is a cgroup's id.
    CgroupStorage,
    /// An array that is mapped into memory.
    MappedArray,
    /// A listening TCP socket in a sockhash.
    SocketMap,
    /// A ring buffer.
    RingBuffer,
    /// How programs tell the network namespace of a listening socket: by its cookie, or else by its
    /// inode number.
    ListenerNetns,
    /// `bpf_set_retval` (`Kernel::SET_RETVAL`).
    SetRetval,
    /// `bpf_sk_lookup::ingress_ifindex` (`Kernel::INGRESS_IFINDEX`).
    IngressIfindex,
    /// `pidfd_getfd`.
    BorrowedSocket,
    /// What accelerates connections to proxies, with all its guards.
    Acceleration,
}

/// What a try came to.
#[derive(Debug)]
pub struct Trial {
    /// What was tried.
    pub feature: Feature,
    /// Why it did not work.
    pub result: Result<()>,
}

/// Tries everything. What cannot be tried because something else failed is not among the results.
#[must_use]
pub fn everything(cgroup_root: Option<&Path>) -> Vec<Trial> {
    let trials = thread::scope(|scope| {
        // What it is in goes away with the thread.
        let thread = scope.spawn(|| in_scratch(cgroup_root));
        thread.join().unwrap_or_else(|_| {
            let result = Err(anyhow!("it panicked; report this as a defect"));
            let feature = Feature::Scratch;
            vec![Trial { feature, result }]
        })
    });
    trials.into_iter().chain(lacks()).collect()
}

/// What older kernels lack, and we can do without.
fn lacks() -> [Trial; 3] {
    let listener_netns = kernel::netns_cookie().or_else(|no_cookie| {
        kernel::netns_inode()
            .map(drop)
            .map_err(|error| error.context(no_cookie))
    });
    [
        (Feature::ListenerNetns, listener_netns),
        (Feature::SetRetval, kernel::set_retval()),
        (Feature::IngressIfindex, kernel::ingress_ifindex()),
    ]
    .map(|(feature, result)| Trial { feature, result })
}

/// Whether a descriptor of another process can be borrowed: of a child, which waits on its standard
/// input meanwhile. `program` is this agent's own.
#[must_use]
pub fn borrowed_socket(program: &Path) -> Trial {
    let borrow = || -> Result<()> {
        let mut child = Command::new(program)
            .args(["check", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("running {}", program.display()))?;
        let borrowed = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())
            .context("pidfd_open")
            .and_then(|pidfd| {
                pidfd_getfd(&pidfd, 0, PidfdGetfdFlags::empty()).context("pidfd_getfd")
            });
        // The end of its input is its end.
        drop(child.stdin.take());
        child.wait().context("waiting for it")?;
        borrowed.map(drop)
    };
    Trial {
        feature: Feature::BorrowedSocket,
        result: borrow(),
    }
}

/// What has been loaded, and what came of it.
struct Scratch {
    trials: Vec<Trial>,
    pins: PathBuf,
}

fn in_scratch(cgroup_root: Option<&Path>) -> Vec<Trial> {
    let mut scratch = Scratch {
        trials: Vec::new(),
        pins: PathBuf::new(),
    };
    if let Some(pins) = scratch.note(Feature::Scratch, private_bpffs()) {
        scratch.pins = pins;
        scratch.try_programs(cgroup_root);
    }
    let is_there = is_map_supported(MapType::RingBuf)
        .context("making a ring buffer")
        .and_then(|found| found.then_some(()).context("the kernel has no such maps"));
    scratch.note(Feature::RingBuffer, is_there);
    scratch.trials
}

impl Scratch {
    fn note<T>(&mut self, feature: Feature, result: Result<T>) -> Option<T> {
        let (value, result) = match result {
            Ok(value) => (Some(value), Ok(())),
            Err(error) => (None, Err(error)),
        };
        self.trials.push(Trial { feature, result });
        value
    }

    fn try_programs(&mut self, cgroup_root: Option<&Path>) {
        let loaded = loader(&self.pins, &self.pins.join(WORKLOADS), CAPACITY)
            .override_global("KERNEL", kernel::running(), true)
            .load(CGROUP_OBJECT)
            .context("making the maps");
        let Some(mut object) = self.note(Feature::Maps, loaded) else {
            return;
        };
        let mut programs = Vec::new();
        for (name, attach_type) in CGROUP_PROGRAMS {
            let program = load_program(&mut object, name);
            programs.extend(
                self.note(Feature::Program(name), program)
                    .map(|program| (attach_type, program)),
            );
        }
        let inbound = load_inbound(&self.pins);
        if let Some(program) = self.note(Feature::Program("sk_lookup"), inbound) {
            let attached = own_netns().and_then(|netns| {
                sys::link_create(program.as_fd(), netns.as_fd(), AttachType::SkLookup)
                    .context("attaching sk_lookup to a new network namespace")
            });
            self.note(Feature::NetnsLink, attached);
        }
        if let Some(root) = cgroup_root {
            self.try_cgroup(root, &programs);
        }
        let mapped = map_array(&object);
        self.note(Feature::MappedArray, mapped);
        let entered = enter_listener(&self.pins);
        self.note(Feature::SocketMap, entered);
        // The maps of the others are its too.
        let workloads = self.pins.join(WORKLOADS);
        let accelerates = Acceleration::load(&self.pins, 1, &workloads, CAPACITY);
        self.note(Feature::Acceleration, accelerates.map(drop));
    }

    fn try_cgroup(&mut self, root: &Path, programs: &[(AttachType, OwnedFd)]) {
        let made = scratch::Scratch::below(root, Purpose::Doctor).and_then(|scratch| {
            let id = fs::metadata(&scratch.path)?.ino();
            Ok((scratch, id))
        });
        let (cgroup, id) = match made {
            Ok(made) => made,
            Err(error) => {
                self.note::<()>(Feature::CgroupLink, Err(error));
                return;
            }
        };
        let path = cgroup.path.display();
        let attach = |(attach_type, program): &(AttachType, OwnedFd)| {
            sys::link_create(program.as_fd(), cgroup.as_fd(), *attach_type)
                .with_context(|| format!("attaching {attach_type:?} to {path}"))
        };
        let links: Result<Vec<OwnedFd>> = programs.iter().map(attach).collect();
        if let Some(_links) = self.note(Feature::CgroupLink, links) {
            let written = open_map(&self.pins, "IDENTITIES").and_then(|identities| {
                let identity = Identity::default();
                sys::set_identity(identities.fd().as_fd(), id, &identity)
                    .with_context(|| format!("writing the storage of {path}"))
            });
            self.note(Feature::CgroupStorage, written);
        }
    }
}

/// Mounts a BPF file system that only the calling thread sees.
fn private_bpffs() -> Result<PathBuf> {
    sys::leave_namespaces().context("making mount and network namespaces")?;
    let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    mount_change("/", private).context("keeping our mounts to ourselves")?;
    // Whatever is there stays for everybody else.
    let at = ["/sys/fs/bpf", "/run", "/tmp"].map(Path::new);
    let at = at
        .into_iter()
        .find(|path| path.is_dir())
        .context("there is no directory to mount a BPF file system on")?;
    mount("bpf", at, "bpf", MountFlags::empty(), None)
        .with_context(|| format!("mounting a BPF file system at {}", at.display()))?;
    Ok(at.to_owned())
}

fn load_inbound(pins: &Path) -> Result<OwnedFd> {
    let mut object = loader(pins, &pins.join(WORKLOADS), CAPACITY)
        .override_global("WORKLOAD", &NOBODY, true)
        .override_global("KERNEL", kernel::running(), true)
        .load(NETNS_OBJECT)
        .context("opening the maps")?;
    load_program(&mut object, "inbound")
}

fn own_netns() -> Result<File> {
    File::open("/proc/thread-self/ns/net").context("opening /proc/thread-self/ns/net")
}

fn open_map(pins: &Path, name: &str) -> Result<MapData> {
    MapData::from_pin(pins.join(name)).with_context(|| format!("opening the map {name}"))
}

fn map_array(object: &Ebpf) -> Result<()> {
    let Some(Map::Array(map)) = object.map("WORKLOADS") else {
        return Err(anyhow!("there is no array `WORKLOADS`"));
    };
    MappedWords::map(map.fd().as_fd(), WORKLOAD_SLOTS).context("mapping an array")?;
    Ok(())
}

fn enter_listener(pins: &Path) -> Result<()> {
    let listener = TcpListener::bind("0.0.0.0:0").context("opening a listening socket")?;
    let map = Map::SockHash(open_map(pins, "SOCKETS")?);
    let mut sockets: SockHash<MapData, WorkloadEndpoint> = map.try_into()?;
    let key = WorkloadEndpoint {
        workload: NOBODY,
        endpoint: Endpoint::new(Addr::ANY_V4, 1),
    };
    sockets
        .insert(key, listener.as_raw_fd(), 0)
        .context("entering a listening socket into a sockhash")
}
