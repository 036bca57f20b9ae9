//! What the tests begin with.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use sidecar_tests::{
    Agent, Probe,
    kube::ApiServer,
    lab::{Lab, service},
};

/// A service that a Sidecar may expose.
pub const DETAILS: &str = "10.96.1.1:9080";
/// One that no Sidecar exposes.
pub const SECRET: &str = "10.96.1.4:9080";

/// A lab, a cluster, and a client in the workload.
pub struct World {
    pub lab: Lab,
    pub probe: Probe,
    pub api: ApiServer,
}

impl World {
    /// A cluster without kinds of Istio, and nothing in it but services. No agent runs.
    pub fn bare() -> anyhow::Result<Self> {
        Self::of(ApiServer::start()?)
    }

    fn of(api: ApiServer) -> anyhow::Result<Self> {
        let mut lab = Lab::new()?;
        lab.announce("10.96.0.0/16")?;
        lab.serve(DETAILS, "details")?;
        lab.serve(SECRET, "secret")?;
        let probe = Probe::start(lab.inside())?;
        declare_mesh(&api)?;
        Ok(Self { lab, probe, api })
    }

    /// The workload is in the cluster, and captured: it reaches [`DETAILS`] and not [`SECRET`].
    pub fn captured() -> anyhow::Result<Self> {
        Self::captured_in(ApiServer::start()?)
    }

    /// The same in a cluster to which something was added.
    pub fn captured_in(api: ApiServer) -> anyhow::Result<Self> {
        let mut world = Self::of(api)?;
        world.api.add_crds()?;
        world.add_workload()?;
        world.expose("prod-us1")?;
        world.start_agent()?;
        world.lab.wait_captured()?;
        ensure!(world.reaches(DETAILS)?, "what is exposed is not reached");
        ensure!(!world.reaches(SECRET)?, "what is not exposed is reached");
        Ok(world)
    }

    /// Starts the agent and waits for its answer.
    pub fn start_agent(&mut self) -> anyhow::Result<()> {
        let agent = Agent::with_kubeconfig(&self.api.kubeconfig()).env("NODE_NAME", "node-a");
        self.lab.start_another_agent(agent)
    }

    /// Declares the lab's workload in the cluster.
    pub fn add_workload(&self) -> anyhow::Result<()> {
        let address = format!("address: {}", self.lab.workload().v4);
        self.api.apply(&self.lab.workload_entry(&address, &[])?)?;
        Ok(())
    }

    /// Applies a Sidecar that exposes the services of one namespace.
    pub fn expose(&self, namespace: &str) -> anyhow::Result<()> {
        self.api.apply(&sidecar(&[namespace]))?;
        Ok(())
    }

    /// Whether a new connection of the workload is answered.
    pub fn reaches(&self, address: &str) -> anyhow::Result<bool> {
        let address: SocketAddr = address.parse()?;
        Ok(self.probe.visit(address)?.is_ok())
    }

    /// What the agent's status says of the cluster.
    pub fn cluster(&self) -> anyhow::Result<Value> {
        let mut status = self.lab.agent()?.status()?;
        let cluster = status.get_mut("cluster").map(Value::take);
        cluster.context("its status says nothing of the cluster")
    }
}

/// Declares the service at [`DETAILS`], and that nothing else is to be reached.
pub fn declare_mesh(api: &ApiServer) -> anyhow::Result<()> {
    api.apply(&service("prod-us1", "details", "10.96.1.1".parse()?, 9080))?;
    api.apply(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\n\
         data: {mesh: 'outboundTrafficPolicy: {mode: REGISTRY_ONLY}'}\n",
    )?;
    Ok(())
}

/// The Sidecar of the namespace, which exposes the services of these.
pub fn sidecar(exposed: &[&str]) -> String {
    let hosts: Vec<_> = exposed.iter().map(|of| format!("'{of}/*'")).collect();
    let hosts = hosts.join(", ");
    format!(
        "apiVersion: networking.istio.io/v1\nkind: Sidecar\n\
         metadata: {{name: default, namespace: prod-us1}}\n\
         spec: {{egress: [{{hosts: [{hosts}]}}]}}\n"
    )
}
