//! A node with three workloads: one without a proxy, one with a proxy, one that is toggled.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use rustix::io::Errno;

use crate::{
    Cgroup, Host, Place, Probe, Server,
    apps::wire::Seen,
    lab::{Lab, service},
};

/// Istio's proxy user.
const PROXY: u32 = 1337;

/// An address that the Sidecar exposes.
pub const EXPOSED: &str = "10.96.0.1:9080";
/// One that it exposes every other second.
pub const SOMETIMES: &str = "10.96.0.2:9080";
/// One that it never exposes.
pub const HIDDEN: &str = "10.96.0.4:9080";
/// One on a port that is excluded from capture.
pub const EXCLUDED: &str = "10.96.0.1:9090";
/// Rules that are configured in turn: the maps of one size cannot be used with the other.
const SIZES: [&str; 2] = ["100000", "200000"];

/// The node.
pub struct World {
    /// Its first workload is the one without a proxy.
    pub lab: Lab,
    proxied: Cgroup,
    /// Where what is toggled runs.
    _toggled: Cgroup,
    /// An application of the workload that is toggled.
    probe: Probe,
    size: usize,
}

impl World {
    /// The workload that is toggled.
    pub const TOGGLED: &str = "prod-us1/toggled";

    /// Makes it, with its agent.
    ///
    /// # Errors
    /// When a part cannot be made.
    pub fn new() -> anyhow::Result<Self> {
        let mut lab = Lab::new()?;
        lab.announce("10.96.0.0/16")?;
        for (address, name) in [
            (EXPOSED, "exposed"),
            (SOMETIMES, "sometimes"),
            (HIDDEN, "hidden"),
            (EXCLUDED, "excluded"),
        ] {
            lab.serve(address, name)?;
        }
        lab.serve_inside("127.0.0.1:8080", "application")?;
        let (proxied, toggled) = (Cgroup::new("proxied")?, Cgroup::new("toggled")?);
        let client = Place::here().netns(&lab.client().netns);
        let proxy = Server::tcp("0.0.0.0:15001".parse()?)
            .place(client.cgroup(&proxied).user(PROXY, PROXY))
            .name("proxy")
            .start()?;
        let probe = Probe::start(Place::here().netns(&lab.workload().netns).cgroup(&toggled))?;
        lab.keep(proxy);
        let mut services = service("prod-us1", "exposed", "10.96.0.1".parse()?, 9080);
        services += &service("sometimes", "sometimes", "10.96.0.2".parse()?, 9080);
        lab.write("services.yaml", &services)?;
        lab.write_workload(&["traffic.sidecar.istio.io/excludeOutboundPorts: '9090'"])?;
        lab.write(
            "proxied.yaml",
            &entry("proxied", &proxied, lab.client(), true)?,
        )?;
        lab.write(
            "toggled.yaml",
            &entry("toggled", &toggled, lab.workload(), false)?,
        )?;
        lab.write_mesh("outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n")?;
        let mut world = Self {
            lab,
            proxied,
            _toggled: toggled,
            probe,
            size: 0,
        };
        world.edit(0)?;
        world
            .lab
            .start_agent_with(|agent| agent.args(["--max-rules", SIZES[0]]))?;
        world.settle()?;
        Ok(world)
    }

    /// Edits the Sidecar, for the so many-th time.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn edit(&self, number: u32) -> anyhow::Result<()> {
        let also = if number.is_multiple_of(2) {
            "\n    - sometimes/*"
        } else {
            ""
        };
        self.lab.write_only(
            "sidecar.yaml",
            &format!(
                "apiVersion: networking.istio.io/v1\nkind: Sidecar\n\
                 metadata: {{name: edited, namespace: prod-us1}}\n\
                 spec:\n  ingress:\n  - port: {{number: 9080, protocol: TCP, name: in}}\n    \
                 defaultEndpoint: 127.0.0.1:8080\n  \
                 egress:\n  - hosts:\n    - prod-us1/*{also}\n"
            ),
        )
    }

    /// Turns capture of one workload off and on, and tells what was wrong with the next connections.
    ///
    /// # Errors
    /// When the agent does not do it.
    pub fn toggle(&self) -> anyhow::Result<Vec<String>> {
        let mut wrong = Vec::new();
        for (to, refused) in [("off", false), ("on", true)] {
            let output = self.lab.agent()?.cli(&["capture", to, Self::TOGGLED])?;
            ensure!(
                output.status.success(),
                "capture {to}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            let seen = self.visit_toggled()?;
            if matches!(seen, Err(Errno::CONNREFUSED)) != refused {
                wrong.push(format!("after `capture {to}`: {seen:?}"));
            }
        }
        Ok(wrong)
    }

    /// A connection of the workload that is toggled, which is refused as long as it is captured.
    ///
    /// # Errors
    /// When the application is in trouble itself.
    pub fn visit_toggled(&self) -> anyhow::Result<Result<Seen, Errno>> {
        self.probe.visit(HIDDEN.parse()?)
    }

    /// The next agent has maps of another size.
    ///
    /// # Errors
    /// When it does not take over.
    pub fn upgrade(&mut self) -> anyhow::Result<()> {
        self.size = (self.size + 1) % SIZES.len();
        let size = SIZES[self.size];
        let agent = self.lab.agent_mut()?;
        agent.set_args(["--max-rules", size]);
        agent.succeed::<&str>(&[])?.wait().map(drop)
    }

    /// Waits until everything is in order.
    ///
    /// # Errors
    /// At the deadline.
    pub fn settle(&self) -> anyhow::Result<()> {
        self.edit(0)?;
        let agent = self.lab.agent()?;
        agent.wait_until("all workloads to be captured", |status| {
            let workloads = status["workloads"].as_array();
            workloads.is_some_and(|workloads| {
                workloads.len() == 3
                    && workloads
                        .iter()
                        .all(|of| of["state"] == "captured" && of["problem"].is_null())
            })
        })?;
        Ok(())
    }

    /// An application of the workload with a proxy.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn behind_proxy(&self) -> anyhow::Result<Probe> {
        let client = Place::here().netns(&self.lab.client().netns);
        Probe::start(client.cgroup(&self.proxied))
    }

    /// The ingress listener of the workload without a proxy.
    #[must_use]
    pub fn ingress(&self) -> SocketAddr {
        (self.lab.workload().v4, 9080).into()
    }
}

fn entry(name: &str, cgroup: &Cgroup, host: &Host, proxied: bool) -> anyhow::Result<String> {
    let proxy = if proxied { "external" } else { "none" };
    let netns = host.netns.path().to_str().context("not UTF-8")?;
    Ok(format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
         metadata:\n  name: {name}\n  namespace: prod-us1\n  annotations:\n    \
         capture.sidecar-agent.io/cgroup: {}\n    \
         capture.sidecar-agent.io/netns: {netns}\n    \
         capture.sidecar-agent.io/proxy: {proxy}\n    \
         traffic.sidecar.istio.io/excludeOutboundPorts: '9090'\n\
         spec: {{address: {}}}\n",
        cgroup.below_root()?,
        if proxied {
            host.v4.to_string()
        } else {
            "10.77.0.99".to_owned()
        }
    ))
}
