//! A pod's containers: which is the proxy's, which the application's.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

/// Of the container of Istio's proxy.
const PROXY: &str = "istio-proxy";

/// Names the container whose file system is the application's, as for kubectl.
pub(super) const DEFAULT_CONTAINER_ANNOTATION: &str = "kubectl.kubernetes.io/default-container";

/// The container of the proxy, if the pod has one: among the containers, or an init container that
/// goes on running (a native sidecar).
pub(super) fn proxy(spec: &PodSpec) -> Option<&Container> {
    let native = spec.init_containers.iter().flatten();
    let native = native.filter(|of| of.restart_policy.as_deref() == Some("Always"));
    let mut all = spec.containers.iter().chain(native);
    all.find(|container| container.name == PROXY)
}

/// Whether an init container of one of these names runs before the containers.
pub(super) fn has_init(spec: &PodSpec, names: &[&str]) -> bool {
    let mut init = spec.init_containers.iter().flatten();
    init.any(|container| names.contains(&container.name.as_str()))
}

/// The name of the container whose root directory is `/` for the pod's unix sockets: the one that
/// an annotation names (`kubectl.kubernetes.io/default-container`), else the first that is not the
/// proxy's.
pub(super) fn application(pod: &Pod) -> Option<&str> {
    let containers = &pod.spec.as_ref()?.containers;
    let annotations = pod.metadata.annotations.as_ref();
    let chosen = annotations.and_then(|all| all.get(DEFAULT_CONTAINER_ANNOTATION));
    let mut names = containers.iter().map(|container| container.name.as_str());
    let first = names.clone().find(|name| *name != PROXY);
    names
        .find(|name| chosen.is_some_and(|chosen| chosen == name))
        .or(first)
}

/// The id of a container that runs, as its cgroup is named: without the runtime's name before `://`.
pub(super) fn running_id<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    let status = pod.status.as_ref()?;
    let of = |list: &'a Option<Vec<_>>| list.iter().flatten();
    let mut all = of(&status.container_statuses).chain(of(&status.init_container_statuses));
    let container = all.find(|container| container.name == name)?;
    container.state.as_ref()?.running.as_ref()?;
    let id = container.container_id.as_deref()?;
    Some(id.split_once("://").map_or(id, |(_, id)| id))
}

/// The value of an environment variable that is written in the pod itself.
pub(super) fn env<'a>(container: &'a Container, name: &str) -> Option<&'a str> {
    let mut env = container.env.iter().flatten();
    env.find(|var| var.name == name)?.value.as_deref()
}
