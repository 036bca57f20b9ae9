//! A small world for one agent: a workload, a client outside it, a host with services, a name
//! server, a directory of resources. Demo and end-to-end tests are made of it.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::{Agent, AgentBuilder, Cgroup, Dns, Host, Net, Place, Server, tempdir::TempDir};

/// The workload of every lab, as `explain` wants it.
pub const WORKLOAD: &str = "prod-us1/productpage";

/// The world. Fields are dropped in this order.
#[derive(Debug)]
pub struct Lab {
    agent: Option<Agent>,
    servers: Vec<Server>,
    /// Answers for the agent.
    pub dns: Dns,
    cgroup: Cgroup,
    net: Net,
    dir: TempDir,
}

impl Lab {
    /// Makes the world; nothing runs in it yet.
    ///
    /// # Errors
    /// When a part cannot be made, mostly for want of root.
    pub fn new() -> anyhow::Result<Self> {
        let net = Net::new(&["client", "workload", "services"])?;
        let dir = TempDir::new("sidecar-lab-")?;
        for sub in ["config", "root/var/run", "root/run"] {
            fs::create_dir_all(dir.path().join(sub))?;
        }
        Ok(Self {
            agent: None,
            servers: Vec::new(),
            dns: Dns::start(None, SocketAddr::from(([127, 0, 0, 1], 0)))?,
            cgroup: Cgroup::new("workload")?,
            net,
            dir,
        })
    }

    /// The network: hosts `client`, `workload`, `services`.
    #[must_use]
    pub fn net(&self) -> &Net {
        &self.net
    }

    /// The host outside the workload.
    #[must_use]
    pub fn client(&self) -> &Host {
        &self.net.hosts()[0]
    }

    /// The workload's host: the only thing captured.
    #[must_use]
    pub fn workload(&self) -> &Host {
        &self.net.hosts()[1]
    }

    /// The host of all services.
    #[must_use]
    pub fn services(&self) -> &Host {
        &self.net.hosts()[2]
    }

    /// Where the workload's applications run.
    #[must_use]
    pub fn inside(&self) -> Place<'_> {
        Place::here()
            .netns(&self.workload().netns)
            .cgroup(&self.cgroup)
    }

    /// Where clients from outside run.
    #[must_use]
    pub fn outside(&self) -> Place<'_> {
        Place::here().netns(&self.client().netns)
    }

    /// The workload's cgroup.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// A path inside the workload's root directory.
    #[must_use]
    pub fn in_root(&self, path: &str) -> PathBuf {
        self.dir
            .path()
            .join("root")
            .join(path.trim_start_matches('/'))
    }

    /// The directory of resources.
    #[must_use]
    pub fn config_dir(&self) -> PathBuf {
        self.dir.path().join("config")
    }

    /// The file of the mesh configuration.
    #[must_use]
    pub fn mesh_file(&self) -> PathBuf {
        self.dir.path().join("mesh.yaml")
    }

    /// The agent.
    ///
    /// # Errors
    /// When it was not started.
    pub fn agent(&self) -> anyhow::Result<&Agent> {
        self.agent.as_ref().context("the lab has no agent yet")
    }

    /// The agent, to be stopped and started.
    ///
    /// # Errors
    /// When it was not started.
    pub fn agent_mut(&mut self) -> anyhow::Result<&mut Agent> {
        self.agent.as_mut().context("the lab has no agent yet")
    }

    /// Keeps a server for as long as the lab.
    pub fn keep(&mut self, server: Server) {
        self.servers.push(server);
    }

    /// Starts a server, named in its banner, on the host of services, at an address of a range
    /// that [`announce`](Self::announce) has made local there.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn serve(&mut self, address: &str, name: &str) -> anyhow::Result<()> {
        let server = Server::tcp(address.parse()?)
            .place(Place::here().netns(&self.services().netns))
            .name(name)
            .start()?;
        self.keep(server);
        Ok(())
    }

    /// Starts a server in the workload.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn serve_inside(&mut self, address: &str, name: &str) -> anyhow::Result<()> {
        let server = Server::tcp(address.parse()?)
            .place(self.inside())
            .name(name)
            .start()?;
        self.keep(server);
        Ok(())
    }

    /// Makes a range of addresses the services host's.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn announce(&self, net: &str) -> anyhow::Result<()> {
        self.net.announce(self.services(), net.parse()?)
    }

    /// Writes a file of resources, all at once, as a careful editor does. If the agent runs,
    /// waits until it has applied it.
    ///
    /// # Errors
    /// When it cannot be written, or the agent does not take note.
    pub fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        self.replace(&self.config_dir().join(name), text)
    }

    /// Writes the mesh configuration; see [`write`](Self::write).
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_mesh(&self, text: &str) -> anyhow::Result<()> {
        self.replace(&self.mesh_file(), text)
    }

    /// Writes a file of resources and waits for nothing.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_only(&self, name: &str, text: &str) -> anyhow::Result<()> {
        write_at_once(&self.config_dir().join(name), text)
    }

    fn replace(&self, path: &Path, text: &str) -> anyhow::Result<()> {
        let before = self.agent.as_ref().map(Agent::status).transpose()?;
        write_at_once(path, text)?;
        if let (Some(agent), Some(before)) = (&self.agent, before) {
            agent.wait_until("the new configuration", |status| {
                status["generation"].as_u64() > before["generation"].as_u64()
            })?;
        }
        Ok(())
    }

    /// Writes the workload's entry, with its addresses and more annotations, each as
    /// `name: value`.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_workload(&self, annotations: &[&str]) -> anyhow::Result<()> {
        let Host { v4, v6, .. } = self.workload();
        let addresses = format!("capture.sidecar-agent.io/addresses: '{v6}'");
        let annotations: Vec<&str> = annotations.iter().copied().chain([&*addresses]).collect();
        self.write_workload_at(&format!("address: {v4}"), &annotations)
    }

    /// Writes the workload's entry; `address` is the line of its `spec` that says where it is.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_workload_at(&self, address: &str, annotations: &[&str]) -> anyhow::Result<()> {
        let text = self.workload_entry(address, annotations)?;
        self.write("workload.yaml", &text)
    }

    /// The workload's entry; see [`write_workload_at`](Self::write_workload_at).
    ///
    /// # Errors
    /// When its cgroup is not below the cgroup2 root.
    pub fn workload_entry(&self, address: &str, annotations: &[&str]) -> anyhow::Result<String> {
        let cgroup = self.cgroup.below_root()?;
        let mut more = String::new();
        for line in annotations {
            more += "    ";
            more += line;
            more += "\n";
        }
        Ok(format!(
            "apiVersion: networking.istio.io/v1\n\
                 kind: WorkloadEntry\n\
                 metadata:\n  \
                   name: productpage\n  \
                   namespace: prod-us1\n  \
                   annotations:\n    \
                     capture.sidecar-agent.io/cgroup: {cgroup}\n    \
                     capture.sidecar-agent.io/netns: {netns}\n    \
                     capture.sidecar-agent.io/root: {root}\n\
                 {more}\
                 spec:\n  \
                   {address}\n  \
                   labels:\n    \
                     app: productpage\n",
            netns = self.workload().netns.path().display(),
            root = self.in_root("").display(),
        ))
    }

    /// Starts the agent and waits until the workload is captured.
    ///
    /// # Errors
    /// When it does not get there: with its logs.
    pub fn start_agent(&mut self) -> anyhow::Result<()> {
        self.start_agent_unready()?;
        self.wait_captured()
    }

    /// Starts the agent and waits for nothing but its answer.
    ///
    /// # Errors
    /// When it does not start: with its logs.
    pub fn start_agent_unready(&mut self) -> anyhow::Result<()> {
        self.start_agent_with(|agent| agent)
    }

    /// Starts the agent with more settings and waits for nothing but its answer.
    ///
    /// # Errors
    /// When it does not start: with its logs.
    pub fn start_agent_with(
        &mut self,
        settings: impl FnOnce(AgentBuilder) -> AgentBuilder,
    ) -> anyhow::Result<()> {
        ensure!(self.agent.is_none(), "the lab has an agent already");
        let agent = Agent::with_config(&self.config_dir())
            .mesh_config(&self.mesh_file())
            .dns(&self.dns);
        self.agent = Some(settings(agent).start()?);
        Ok(())
    }

    /// Starts an agent that reads something else, with the lab's name server, and waits for nothing
    /// but its answer.
    ///
    /// # Errors
    /// When it does not start: with its logs.
    pub fn start_another_agent(&mut self, agent: AgentBuilder) -> anyhow::Result<()> {
        ensure!(self.agent.is_none(), "the lab has an agent already");
        self.agent = Some(agent.dns(&self.dns).start()?);
        Ok(())
    }

    /// Waits until the plan that is wanted is in force.
    ///
    /// # Errors
    /// At the deadline: with the status and the agent's logs.
    pub fn wait_captured(&self) -> anyhow::Result<()> {
        self.agent()?
            .wait_until("the workload to be captured", |status| {
                let workload = &status["workloads"][0];
                workload["state"] == "captured" && workload["problem"].is_null()
            })?;
        Ok(())
    }

    /// What `explain` says about a connection of the workload; `destination` as on the command
    /// line.
    ///
    /// # Errors
    /// When it fails: with what it printed.
    pub fn explain(&self, destination: &str) -> anyhow::Result<Value> {
        let config = self.config_dir().display().to_string();
        let mesh = self.mesh_file().display().to_string();
        let dns = self.dns.address().to_string();
        let output = std::process::Command::new(crate::programs::agent()?)
            .args([
                "explain",
                "--config",
                &config,
                "--mesh-config",
                &mesh,
                "--dns-server",
                &dns,
            ])
            .args(["-o", "json", WORKLOAD, destination])
            .output()?;
        ensure!(
            output.status.success(),
            "explain {destination} failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).context("explain printed no JSON")
    }

    /// How often the kernel decided for `reason`, for connections of one direction.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn decisions(&self, direction: &str) -> anyhow::Result<Vec<(String, u64)>> {
        let status = self.agent()?.status()?;
        let decisions = status["workloads"][0]["decisions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for decision in decisions.iter().filter(|of| of["direction"] == direction) {
            let reason = decision["reason"].as_str().unwrap_or_default().to_owned();
            *counts.entry(reason).or_default() += decision["count"].as_u64().unwrap_or_default();
        }
        Ok(counts.into_iter().collect())
    }

    /// Connections the relay accepted so far.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn relayed(&self) -> anyhow::Result<u64> {
        Ok(self.agent()?.status()?["relay"]["accepted"]
            .as_u64()
            .unwrap_or_default())
    }
}

fn write_at_once(path: &Path, text: &str) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text).with_context(|| format!("cannot write {}", new.display()))?;
    fs::rename(&new, path).with_context(|| format!("cannot write {}", path.display()))
}

/// A Kubernetes service without selector: its virtual IP answers by itself.
#[must_use]
pub fn service(namespace: &str, name: &str, ip: IpAddr, port: u16) -> String {
    format!(
        "apiVersion: v1\n\
         kind: Service\n\
         metadata:\n  name: {name}\n  namespace: {namespace}\n\
         spec:\n  clusterIP: {ip}\n  ports:\n  - name: http\n    port: {port}\n---\n"
    )
}
