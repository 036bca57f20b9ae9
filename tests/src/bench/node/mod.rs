//! A large node: 250 workloads in cgroups and namespaces of their own, and a mesh of 10,000 services.

mod life;
mod mesh;

use std::{fmt::Write as _, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, bail, ensure};
use rustix::io::Errno;
use sidecar_agent::{
    model::Snapshot,
    observe::{
        admin::{self, Answer, Request},
        status::{State, Status},
    },
};

pub use life::{bystander, changes};
pub use mesh::{NODE, Size};

use crate::{
    Agent, Cgroup, Namespace, Place, Probe, lab::service, poll::poll_result, tempdir::TempDir,
};

/// How long an agent may take for everything at once.
const PATIENCE: Duration = Duration::from_mins(3);

/// What the agent logs when a configuration is in force.
const APPLIED: &str = "applied the configuration";

/// How many lines of its log are shown when it takes longer.
const SHOWN: usize = 20;

/// The namespaces that the Sidecar which changes exposes in turn.
const EXPOSED: [&str; 2] = ["exposed-a", "exposed-b"];

/// A service of the first of them.
const SERVICE: &str = "10.254.0.1:80";

/// The node. Fields are dropped in this order.
pub struct Node {
    agent: Agent,
    /// An application of the workload whose Sidecar changes.
    probe: Probe,
    snapshot: Snapshot,
    places: Vec<(Cgroup, Namespace)>,
    _all: Cgroup,
    dir: TempDir,
}

impl Node {
    /// Makes it, with an agent that is not started yet.
    ///
    /// # Errors
    /// When a part cannot be made.
    pub fn new(size: Size) -> anyhow::Result<Self> {
        let snapshot = mesh::mesh(Size {
            // One is ours.
            workloads: size.workloads - 1,
            ..size
        });
        let dir = TempDir::new("sidecar-node-")?;
        let config = dir.path().join("config");
        std::fs::create_dir(&config)?;
        let all = Cgroup::new("node")?;
        let places = (0..size.workloads)
            .map(|number| Ok((all.child(&number.to_string())?, Namespace::new("node")?)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let (cgroup, netns) = places.last().context("a node without workloads")?;
        let probe = Probe::start(Place::here().netns(netns).cgroup(cgroup))?;
        // On any CPU, as users run it.
        let agent = Agent::with_config(&config).not_started()?;
        let node = Self {
            agent,
            probe,
            snapshot,
            places,
            _all: all,
            dir,
        };
        mesh::write(&node.snapshot, &config)?;
        let mut services = String::new();
        for (number, namespace) in (1..).zip(EXPOSED) {
            services += &service(namespace, "service", [10, 254, 0, number].into(), 80);
        }
        mesh::save(&config, "exposed", &services)?;
        node.expose(0)?;
        node.write_workloads(false, size.workloads)?;
        Ok(node)
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("config")
    }

    /// Writes the Sidecar that changes.
    fn expose(&self, which: usize) -> anyhow::Result<()> {
        let namespace = EXPOSED[which % EXPOSED.len()];
        mesh::save(
            &self.config(),
            "changing",
            &format!(
                "apiVersion: networking.istio.io/v1\nkind: Sidecar\n\
                 metadata: {{name: changing, namespace: changing}}\n\
                 spec:\n  outboundTrafficPolicy: {{mode: REGISTRY_ONLY}}\n  \
                 egress:\n  - hosts: ['./*', '{namespace}/*']\n"
            ),
        )
    }

    /// Whether the application can call a service of the first namespace.
    fn is_exposed(&self) -> anyhow::Result<bool> {
        let service: SocketAddr = SERVICE.parse()?;
        match self.probe.visit(service)? {
            Err(Errno::CONNREFUSED) => Ok(false),
            // It has no way out, but it was let go.
            Err(Errno::NETUNREACH) => Ok(true),
            other => bail!("calling {SERVICE} has come to {other:?}"),
        }
    }

    /// Writes the first so many workloads. Those that are alike follow the same plan.
    fn write_workloads(&self, alike: bool, count: usize) -> anyhow::Result<()> {
        let mut text = String::new();
        for (number, (cgroup, netns)) in self.places.iter().enumerate().take(count) {
            let of_mesh = self.snapshot.workloads.get(number);
            let (namespace, labels) = match of_mesh {
                _ if alike => ("alike", "{}".to_owned()),
                Some(of) => (&*of.meta.namespace, serde_json::to_string(&of.spec.labels)?),
                // Of the Sidecar that changes.
                None => ("changing", "{}".to_owned()),
            };
            let [_, a, b, c] = u32::try_from(number)?.to_be_bytes();
            writeln!(
                text,
                "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
                 metadata:\n  name: workload-{number}\n  namespace: {namespace}\n  annotations:\n    \
                 capture.sidecar-agent.io/cgroup: {}\n    \
                 capture.sidecar-agent.io/netns: {}\n\
                 spec: {{address: 12.{a}.{b}.{c}, labels: {labels}}}\n---",
                cgroup.below_root()?,
                netns.path().display(),
            )?;
        }
        mesh::save(&self.config(), "workloads", &text)
    }

    /// Starts the agent, and waits until so many workloads are captured.
    fn start(&mut self, count: usize) -> anyhow::Result<()> {
        let applied = self.applied();
        self.agent.spawn()?;
        self.captured(count, applied)
    }

    /// How often the agent has said that a configuration is in force.
    fn applied(&self) -> usize {
        let logs = self.agent.logs();
        let is_applied = |line: &&String| line.contains(APPLIED);
        logs.iter().filter(is_applied).count()
    }

    /// Waits until the agent says so again, and so many workloads are captured, and nothing is wrong
    /// with any. Its log is looked at, as to answer would keep it from its work.
    fn captured(&self, count: usize, applied: usize) -> anyhow::Result<()> {
        let run_dir = self.agent.run_dir();
        let ready = poll_result(PATIENCE, "all workloads to be captured", || {
            ensure!(
                self.applied() > applied,
                "the configuration is not in force"
            );
            let Answer::Status(status) = admin::ask(&run_dir, &Request::Status)? else {
                bail!("the agent has answered something else");
            };
            ensure!(is_captured(&status, count), "not all are");
            Ok(())
        });
        ready.with_context(|| {
            let logs = self.agent.logs();
            let last = logs.len().saturating_sub(SHOWN);
            format!("the agent's last logs:\n{}", logs[last..].join("\n"))
        })
    }

    /// Takes away all that is in the kernel, and the agent.
    fn uninstall(&mut self) -> anyhow::Result<()> {
        self.agent.stop()?;
        let output = self.agent.cli(&["uninstall"])?;
        ensure!(
            output.status.success(),
            "uninstall: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

fn is_captured(status: &Status, count: usize) -> bool {
    let mut all = status.workloads.iter();
    status.generation > 0
        && status.workloads.len() == count
        && all.all(|of| of.state == State::Captured && of.problem.is_none())
}
