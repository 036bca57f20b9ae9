//! The cluster as a source.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context, Result};

use super::cni;
use crate::{
    observe::events,
    runtime,
    source::{kube, pods::select::Policy},
};

/// Options of `run`.
#[derive(Debug, clap::Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
pub struct ClusterArgs {
    /// Read the Kubernetes API as well: resources of Istio, services, endpoints, and the pods of
    /// this node. As a pod of the cluster by its service account, else by --kubeconfig.
    #[arg(long, env = "SIDECAR_AGENT_KUBE")]
    kube: bool,
    /// File that says where the API server is, and who we are.
    #[arg(
        long,
        env = "SIDECAR_AGENT_KUBECONFIG",
        value_name = "FILE",
        requires = "kube"
    )]
    kubeconfig: Option<PathBuf>,
    /// Name of this node in the cluster; the host's name if not given.
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    node_name: Option<String>,
    /// The `ConfigMap` whose key `mesh` is Istio's `MeshConfig`.
    #[arg(
        long,
        env = "SIDECAR_AGENT_MESH_CONFIG_MAP",
        value_name = "NAMESPACE/NAME",
        default_value = "istio-system/istio"
    )]
    mesh_config_map: NamespacedName,
    #[command(flatten)]
    excluded: cni::Excluded,
    /// The agent's own pod, which is left alone.
    #[arg(long, env = "SIDECAR_AGENT_POD", value_name = "NAMESPACE/NAME")]
    own_pod: Option<NamespacedName>,
    /// Where the host's /proc is mounted.
    #[arg(
        long,
        env = "SIDECAR_AGENT_HOST_PROC",
        value_name = "DIR",
        default_value = "/proc"
    )]
    host_proc: PathBuf,
    /// Tell on pods of this node, as Kubernetes Events, whether they are captured, or why not.
    #[arg(long, env = "SIDECAR_AGENT_POD_EVENTS", requires = "kube")]
    pod_events: bool,
    /// Write the same on captured pods: annotation `capture.sidecar-agent.io/status`.
    #[arg(long, env = "SIDECAR_AGENT_POD_STATUS", requires = "kube")]
    pod_status: bool,
    /// Install the CNI plugin, and keep it in the runtime's list whoever rewrites that, so that pods
    /// start once they are captured. It stays when the agent ends: `cni uninstall` takes it away.
    #[arg(long, env = "SIDECAR_AGENT_CNI", requires = "kube")]
    cni: bool,
    #[command(flatten)]
    plugin: cni::Node,
}

/// A namespace and a name in it.
#[derive(Clone, Debug)]
struct NamespacedName(String, String);

impl FromStr for NamespacedName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
                Ok(Self(namespace.into(), name.into()))
            }
            _ => Err("not NAMESPACE/NAME"),
        }
    }
}

impl ClusterArgs {
    /// What is to be watched, by an agent with this run directory; `None`: nothing.
    ///
    /// # Errors
    /// If this node has no name.
    pub fn options(self, run_dir: &Path) -> Result<Option<runtime::Cluster>> {
        if !self.kube {
            return Ok(None);
        }
        let given = self.node_name.filter(|name| !name.is_empty());
        let node_name = given.map_or_else(host_name, Ok)?;
        let NamespacedName(namespace, name) = self.mesh_config_map;
        let excluded_namespaces = self.excluded.namespaces();
        let install = || {
            let excluded = excluded_namespaces.clone();
            self.plugin.install(run_dir.to_owned(), excluded)
        };
        let told = events::Options {
            node: node_name.clone(),
            events: self.pod_events,
            annotation: self.pod_status,
        };
        Ok(Some(runtime::Cluster {
            told: (told.events || told.annotation).then_some(told),
            source: kube::Options {
                kubeconfig: self.kubeconfig,
                node_name,
                mesh_config_map: (namespace, name),
            },
            cni: self.cni.then(install),
            host_proc: self.host_proc,
            pods: Policy {
                excluded_namespaces,
                own_pod: self
                    .own_pod
                    .map(|NamespacedName(namespace, name)| (namespace, name)),
            },
        }))
    }
}

/// As kubelet names a node.
fn host_name() -> Result<String> {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_str();
    name.map(str::to_lowercase)
        .context("the host's name is no UTF-8; give --node-name")
}
