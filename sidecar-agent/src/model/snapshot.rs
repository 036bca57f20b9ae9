//! Everything that is known at one moment: the input of resolve and compile.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    FailurePolicy,
    endpoints::Endpoints,
    mesh::MeshConfig,
    meta::{Object, ResourceRef},
    service::Service,
    service_entry::ServiceEntry,
    sidecar::Sidecar,
    virtual_service::VirtualService,
    workload::WorkloadEntry,
};

/// A consistent view of all resources. Within each list the order is (creation, name, namespace).
///
/// Resources are shared: a resource that did not change is the same allocation in the next
/// snapshot, by which it is known to be unchanged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Mesh-wide settings.
    pub mesh: MeshConfig,
    /// The document they come from; `None`: they are the defaults.
    pub mesh_origin: Option<ResourceRef>,
    /// `Sidecar`s.
    pub sidecars: Vec<Arc<Object<Sidecar>>>,
    /// Kubernetes services.
    pub services: Vec<Arc<Object<Service>>>,
    /// Endpoints of Kubernetes services.
    pub endpoints: Vec<Arc<Object<Endpoints>>>,
    /// Service entries.
    pub service_entries: Vec<Arc<Object<ServiceEntry>>>,
    /// Virtual services.
    pub virtual_services: Vec<Arc<Object<VirtualService>>>,
    /// Workloads: those with [`super::workload::CGROUP_ANNOTATION`] are captured on this node,
    /// all of them can be endpoints.
    pub workloads: Vec<Arc<Object<WorkloadEntry>>>,
    /// What host names resolve to. A name that is absent was not asked for; an empty set means
    /// that it could not be resolved.
    pub dns: BTreeMap<String, BTreeSet<IpAddr>>,
    /// The node's failure policy: holds as far as a workload says nothing else.
    pub failure_policy: FailurePolicy,
}

/// Whether two lists hold the same allocations: then nothing in them changed.
#[must_use]
pub fn same<'a, T: 'a>(a: impl ExactSizeIterator<Item = &'a Arc<T>>, b: &[Arc<T>]) -> bool {
    a.len() == b.len() && a.zip(b).all(|(a, b)| Arc::ptr_eq(a, b))
}
