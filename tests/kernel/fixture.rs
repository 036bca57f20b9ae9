//! A workload with the dataplane attached to it.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use aya::programs::links::{FdLink, LinkInfo, PinnedLink};
use sidecar_agent::{
    compile::Plan,
    dataplane::{
        Binding, Capacity, Config, Dataplane, RelaySockets, cgroup, default_pin_dir, netns::Netns,
    },
};
use sidecar_common::{
    Reason,
    decide::Direction,
    keys::{PlanId, WorkloadId},
};
use sidecar_tests::{
    Bpffs, Cgroup, DEADLINE, Namespace, Place, Probe, Server,
    apps::{Seen, wire::canonical},
    poll::poll_result,
};

use crate::plan::{PROXY_UID, Planner, at};

/// Small, so that the maps of many tests at a time are, and one can be filled.
pub const CAPACITY: Capacity = Capacity {
    workloads: 4,
    plans: 8,
    rules: 512,
    sockets: 32,
    original_dst: 256,
};

/// The loaded dataplane, with a BPF file system of its own.
pub struct Loaded {
    pub dataplane: Dataplane,
    pub bpffs: Bpffs,
}

impl Loaded {
    pub fn new() -> anyhow::Result<Self> {
        Self::at(Bpffs::temporary()?, CAPACITY)
    }

    /// Loads it with what there is in a BPF file system.
    pub fn at(bpffs: Bpffs, capacity: Capacity) -> anyhow::Result<Self> {
        let dataplane = Dataplane::load(&Config {
            pin_dir: default_pin_dir(bpffs.path()),
            capacity,
        })?;
        Ok(Self { dataplane, bpffs })
    }

    /// As a restart of the agent: what is pinned stays.
    pub fn again(self, capacity: Capacity) -> anyhow::Result<Self> {
        let Self { dataplane, bpffs } = self;
        drop(dataplane);
        let config = Config {
            pin_dir: default_pin_dir(bpffs.path()),
            capacity,
        };
        // A process that another test has just forked still has the old one's lock until it execs.
        let dataplane = poll_result(DEADLINE, "the pins to be free", || Dataplane::load(&config))?;
        Ok(Self { dataplane, bpffs })
    }

    /// Where everything is pinned.
    pub fn pin_dir(&self) -> PathBuf {
        default_pin_dir(self.bpffs.path())
    }

    /// Where the maps are pinned that it uses as long as nothing else was there before it.
    pub fn maps_dir(&self) -> PathBuf {
        self.pin_dir().join("set-1")
    }

    /// Every pinned link, opened: /proc/self/fdinfo tells of it for as long.
    pub fn links(&self) -> anyhow::Result<Vec<PinnedLink>> {
        let mut links = Vec::new();
        for workload in fs::read_dir(self.maps_dir())? {
            let workload = workload?.path();
            for pin in fs::read_dir(workload).into_iter().flatten() {
                links.push(PinnedLink::from_pin(pin?.path())?);
            }
        }
        Ok(links)
    }

    /// Attaches a workload with a proxy that is known by its uid.
    pub fn attach(&mut self, cgroup: &Cgroup, netns: &Namespace) -> anyhow::Result<WorkloadId> {
        self.attach_with_proxy(cgroup, None, netns)
    }

    /// Attaches a workload whose proxy may have a cgroup of its own.
    pub fn attach_with_proxy(
        &mut self,
        cgroup: &Cgroup,
        proxy: Option<&Cgroup>,
        netns: &Namespace,
    ) -> anyhow::Result<WorkloadId> {
        let cgroup = open_cgroup(cgroup)?;
        let proxy_cgroup = proxy.map(open_cgroup).transpose()?;
        let netns = Netns::open(netns.path().to_str())?;
        self.dataplane.attach(&Binding {
            cgroup: &cgroup,
            proxy_cgroup: proxy_cgroup.as_ref(),
            netns: &netns,
        })
    }

    /// Attaches again what was detached of a workload whose proxy has no cgroup of its own.
    pub fn heal(
        &mut self,
        workload: WorkloadId,
        cgroup: &Cgroup,
        netns: &Namespace,
    ) -> anyhow::Result<()> {
        let cgroup = open_cgroup(cgroup)?;
        let netns = Netns::open(netns.path().to_str())?;
        let binding = Binding {
            cgroup: &cgroup,
            proxy_cgroup: None,
            netns: &netns,
        };
        self.dataplane.heal(workload, &binding)
    }

    /// Installs a plan and makes it the workload's.
    pub fn follow(&mut self, workload: WorkloadId, plan: Plan) -> anyhow::Result<PlanId> {
        let plan = Arc::new(plan);
        let id = self.dataplane.install(&plan.digest(), &plan)?;
        self.dataplane.switch(workload, id, &plan)?;
        Ok(id)
    }

    /// How often a decision was counted, whatever its path.
    #[allow(
        clippy::unnecessary_wraps,
        reason = "callers ask among other things that can fail"
    )]
    pub fn counted(
        &self,
        workload: WorkloadId,
        direction: Direction,
        reason: Reason,
    ) -> anyhow::Result<u64> {
        let counters = self.dataplane.counters(workload);
        let found = counters
            .iter()
            .filter(|(d, _, r, _)| (*d, *r) == (direction, reason));
        Ok(found.map(|(.., count)| *count).sum())
    }
}

/// What the kernel tells of a pinned link.
pub fn link_info(pin: &Path) -> anyhow::Result<LinkInfo> {
    Ok(FdLink::from(PinnedLink::from_pin(pin)?).info()?)
}

pub fn open_cgroup(cgroup: &Cgroup) -> anyhow::Result<cgroup::Cgroup> {
    let root = cgroup::root()?;
    let path = cgroup
        .path()
        .strip_prefix(&root)?
        .to_str()
        .context("not UTF-8")?;
    cgroup::Cgroup::open(&root, path)
}

/// One workload in a namespace of its own.
pub struct Fixture {
    // Dropped in this order: nothing is attached to what is gone.
    pub loaded: Loaded,
    pub workload: WorkloadId,
    pub cgroup: Cgroup,
    pub netns: Namespace,
}

impl Fixture {
    /// As a restart of the agent, which finds the workload attached.
    pub fn again(self) -> anyhow::Result<Self> {
        let Self {
            loaded,
            workload,
            cgroup,
            netns,
        } = self;
        let mut loaded = loaded.again(CAPACITY)?;
        assert_eq!(loaded.attach(&cgroup, &netns)?, workload);
        Ok(Self {
            loaded,
            workload,
            cgroup,
            netns,
        })
    }

    /// A workload that is attached and follows a plan.
    pub fn new(plan: Planner) -> anyhow::Result<Self> {
        let mut fixture = Self::without_plan()?;
        fixture.follow(plan)?;
        Ok(fixture)
    }

    /// A workload that is attached.
    pub fn without_plan() -> anyhow::Result<Self> {
        Self::in_namespace(namespace()?)
    }

    /// A workload in a network as a pod has it, see [`pod`].
    pub fn of_pod(plan: Planner) -> anyhow::Result<Self> {
        let mut fixture = Self::in_namespace(pod()?)?;
        fixture.follow(plan)?;
        Ok(fixture)
    }

    fn in_namespace(netns: Namespace) -> anyhow::Result<Self> {
        let cgroup = Cgroup::new("workload")?;
        let mut loaded = Loaded::new()?;
        let workload = loaded.attach(&cgroup, &netns)?;
        Ok(Self {
            loaded,
            workload,
            cgroup,
            netns,
        })
    }

    /// Makes a plan the workload's.
    pub fn follow(&mut self, plan: Planner) -> anyhow::Result<PlanId> {
        self.loaded.follow(self.workload, plan.build())
    }

    /// Where the workload's processes are.
    pub fn inside(&self) -> Place<'_> {
        self.outside().cgroup(&self.cgroup)
    }

    /// In the workload's namespace, and not of the workload.
    pub fn outside(&self) -> Place<'_> {
        Place::here().netns(&self.netns)
    }

    /// Where the workload's proxy is.
    pub fn as_proxy(&self) -> Place<'_> {
        self.inside().user(PROXY_UID, PROXY_UID)
    }

    /// An application of the workload.
    pub fn app(&self) -> anyhow::Result<Probe> {
        Probe::start(self.inside())
    }

    /// A client that is not the workload's; servers see it come from addresses that it binds.
    pub fn stranger(&self) -> anyhow::Result<Probe> {
        Probe::start(self.outside())
    }

    /// A server that is not the workload's.
    pub fn serve(&self, address: &str) -> anyhow::Result<Server> {
        serve(self.outside(), address, "stranger")
    }

    /// A listener for the relay on 127.0.0.1, made known to the dataplane.
    pub fn relay(&mut self) -> anyhow::Result<TcpListener> {
        let listener = self.netns.run(|| TcpListener::bind("127.0.0.1:0"))??;
        let port = listener.local_addr()?.port();
        let sockets = RelaySockets {
            v4: Some((listener.as_fd(), port)),
            v6: None,
        };
        self.loaded.dataplane.set_relay(self.workload, &sockets)?;
        Ok(listener)
    }

    pub fn outbound(&self, reason: Reason) -> anyhow::Result<u64> {
        self.loaded
            .counted(self.workload, Direction::Outbound, reason)
    }

    pub fn inbound(&self, reason: Reason) -> anyhow::Result<u64> {
        self.loaded
            .counted(self.workload, Direction::Inbound, reason)
    }
}

/// A namespace in which all addresses that tests use are local.
pub fn namespace() -> anyhow::Result<Namespace> {
    let netns = Namespace::new("kernel")?;
    for net in ["10.0.0.0/8", "fd00::/8"] {
        netns.add_local(net.parse()?)?;
    }
    Ok(netns)
}

/// A namespace like a pod's: two interfaces, of which one leads everywhere. Nobody is there.
pub fn pod() -> anyhow::Result<Namespace> {
    let netns = Namespace::new("pod")?;
    for (interface, v4, v6) in [
        ("eth0", "10.244.1.5/24", "fd00:244::5/64"),
        ("net1", "192.168.50.5/24", "fd00:50::5/64"),
    ] {
        let peer = format!("{interface}-peer");
        netns.ip(&format!("link add {interface} type veth peer name {peer}"))?;
        netns.ip(&format!("link set {peer} up"))?;
        netns.add_address(interface, v4.parse()?)?;
        netns.add_address(interface, v6.parse()?)?;
        netns.ip(&format!("link set {interface} up"))?;
    }
    netns.add_route("default via 10.244.1.1")?;
    netns.add_route("default via fd00:244::1")?;
    Ok(netns)
}

/// A server that tells its name and what it sees of a connection.
pub fn serve(place: Place<'_>, address: &str, name: &str) -> anyhow::Result<Server> {
    Server::tcp(at(address)).place(place).name(name).start()
}

/// The address at which a server saw a connection arrive.
pub fn reached(seen: &Seen) -> anyhow::Result<SocketAddr> {
    seen.local
        .map(canonical)
        .context("the server saw no address")
}
