//! What a pod is found by, and why it may not be.

use std::net::IpAddr;

use serde::Serialize;
use thiserror::Error;

use crate::dataplane::netns::Netns;

/// A pod to be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sought {
    /// Its UID, and for a static pod the one that kubelet knows it by, in canonical form.
    pub uids: Vec<String>,
    /// Its addresses, as the API server knows them.
    pub addresses: Vec<IpAddr>,
    /// The id of its application's container, while that runs.
    pub application: Option<String>,
    /// The id of its proxy's container, while that runs.
    pub proxy: Option<String>,
}

/// What a CNI plugin has been told of a pod, before anybody else can know.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// Its network namespace.
    pub netns: Netns,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// Why a pod cannot be captured yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Error)]
#[serde(rename_all = "kebab-case")]
pub enum Missing {
    /// It has just been scheduled.
    #[error("it has no IP address yet")]
    Address,
    /// Its cgroup is not there.
    #[error(
        "no cgroup named after its UID is below the cgroup2 root: is its sandbox running, and does \
         kubelet make cgroups for pods (cgroupsPerQOS)?"
    )]
    Cgroup,
    /// On a node with both versions of control groups.
    #[error(
        "its processes are not in its cgroup in the hierarchy of version 2: the container runtime \
         puts them only into those of version 1; boot the node with cgroup v2 alone, or with a \
         runtime that serves both"
    )]
    NotInCgroup2,
    /// No process of it is in a namespace with its address.
    #[error("no process of it is in a network namespace that has its IP address")]
    Netns,
}
