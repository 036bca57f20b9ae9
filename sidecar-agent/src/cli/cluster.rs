//! The cluster as a source.

use std::{path::PathBuf, str::FromStr};

use anyhow::{Context, Result};

use crate::source::kube;

/// Options of `run`.
#[derive(Debug, clap::Args)]
pub struct Cluster {
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

impl Cluster {
    /// What is to be watched; `None`: nothing.
    ///
    /// # Errors
    /// If this node has no name.
    pub fn options(self) -> Result<Option<kube::Options>> {
        if !self.kube {
            return Ok(None);
        }
        let node_name = match self.node_name.filter(|name| !name.is_empty()) {
            Some(name) => name,
            None => {
                let uname = rustix::system::uname();
                let name = uname.nodename().to_str();
                // As kubelet does.
                name.map(str::to_lowercase)
                    .ok()
                    .context("the host's name is no UTF-8; give --node-name")?
            }
        };
        let NamespacedName(namespace, name) = self.mesh_config_map;
        Ok(Some(kube::Options {
            kubeconfig: self.kubeconfig,
            node_name,
            mesh_config_map: (namespace, name),
        }))
    }
}
