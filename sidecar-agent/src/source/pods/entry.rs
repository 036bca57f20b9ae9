//! A pod that was found on this node, as the workload entry that resolve is given.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use super::{
    containers,
    select::{Capture, Decision},
};
use crate::model::{
    Object, ObjectMeta, Origin,
    settings::{PROXY_GID, PROXY_UID},
    workload::{
        ADDRESSES_ANNOTATION, CAPTURE_ANNOTATION, CGROUP_ANNOTATION, NETNS_ANNOTATION,
        PROXY_ANNOTATION, PROXY_CGROUP_ANNOTATION, ROOT_ANNOTATION, WorkloadEntry,
    },
};

/// What findings about a pod name in place of a file.
pub const ORIGIN: &str = "<pod>";

/// Annotations that say where a workload is. A pod cannot say that of itself: it would choose
/// whose traffic it wants.
const PLACE: [&str; 5] = [
    CGROUP_ANNOTATION,
    NETNS_ANNOTATION,
    ROOT_ANNOTATION,
    ADDRESSES_ANNOTATION,
    PROXY_CGROUP_ANNOTATION,
];

/// Where a pod is on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At {
    /// The pod's own cgroup, below the cgroup2 root.
    pub cgroup: String,
    /// Its network namespace, by the name of [`Netns::hold`](crate::dataplane::netns::Netns::hold).
    pub netns: String,
    /// What is `/` for its unix sockets: the root directory of its application's container.
    pub root: String,
    /// The cgroup of the proxy's container, while it runs.
    pub proxy_cgroup: Option<String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// The workload entry of a pod that is captured, or has opted out and could be.
#[must_use]
pub fn workload_entry(pod: &Pod, decision: &Decision, at: &At) -> Object<WorkloadEntry> {
    let metadata = &pod.metadata;
    let labels = metadata.labels.clone().unwrap_or_default();
    let mut annotations = metadata.annotations.clone().unwrap_or_default();
    for place in PLACE {
        annotations.remove(place);
    }
    let mut set = |name: &str, value: String| annotations.insert(name.to_owned(), value);
    set(CGROUP_ANNOTATION, at.cgroup.clone());
    set(NETNS_ANNOTATION, at.netns.clone());
    set(ROOT_ANNOTATION, at.root.clone());
    if let [_, further @ ..] = at.addresses.as_slice()
        && !further.is_empty()
    {
        let further: Vec<String> = further.iter().map(IpAddr::to_string).collect();
        set(ADDRESSES_ANNOTATION, further.join(","));
    }
    let capture = match decision.capture {
        Capture::On => "on",
        Capture::Off | Capture::Left => "off",
    };
    set(CAPTURE_ANNOTATION, capture.to_owned());
    if let Some(cgroup) = &at.proxy_cgroup {
        set(PROXY_CGROUP_ANNOTATION, cgroup.clone());
    }
    let spec = pod.spec.as_ref();
    if let Some(proxy) = spec.and_then(containers::proxy) {
        let default = |of: &mut BTreeMap<_, _>, name: &str, value: String| {
            of.entry(name.to_owned()).or_insert(value);
        };
        default(&mut annotations, PROXY_ANNOTATION, "external".to_owned());
        let (users, groups) = ids(proxy);
        default(&mut annotations, PROXY_UID.annotation, users);
        default(&mut annotations, PROXY_GID.annotation, groups);
    }
    Object {
        meta: ObjectMeta {
            name: metadata.name.clone().unwrap_or_default(),
            namespace: metadata.namespace.clone().unwrap_or_default(),
            labels: labels.clone(),
            annotations,
            created: metadata
                .creation_timestamp
                .as_ref()
                .map_or(0, |time| time.0.as_second()),
        },
        origin: Origin {
            file: ORIGIN.into(),
            line: 1,
        },
        spec: WorkloadEntry {
            address: at
                .addresses
                .first()
                .map(IpAddr::to_string)
                .unwrap_or_default(),
            ports: spec.map(ports).unwrap_or_default(),
            labels,
            weight: 0,
            is_pod: true,
        },
    }
}

/// The proxy's user and group. They are told also where its cgroup is known: that changes whenever
/// its container restarts, and the proxy calls before anybody can know the next one.
///
/// One that runs as root (mode TPROXY) is known by its group, or every process of the application
/// that is root would be the proxy; one that runs as everybody in the pod does, by its cgroup.
fn ids(proxy: &Container) -> (String, String) {
    let own = proxy.security_context.as_ref();
    let known = |id: Option<i64>| id.filter(|id| *id != 0).unwrap_or(ISTIO_PROXY);
    let user = known(own.and_then(|own| own.run_as_user));
    let group = known(own.and_then(|own| own.run_as_group));
    (user.to_string(), group.to_string())
}

/// The user and group of Istio's proxy.
const ISTIO_PROXY: i64 = 1337;

/// Named TCP ports, those of native sidecars too.
fn ports(spec: &PodSpec) -> BTreeMap<String, u16> {
    let init = spec.init_containers.iter().flatten();
    let containers = spec.containers.iter().chain(init);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let mut seen = BTreeSet::new();
    ports
        .filter(|port| port.protocol.as_deref().is_none_or(|name| name == "TCP"))
        .filter_map(|port| {
            let name = port.name.clone()?;
            let number = u16::try_from(port.container_port).ok()?;
            // The first of a name, as kubelet has it.
            seen.insert(name.clone()).then_some((name, number))
        })
        .collect()
}
