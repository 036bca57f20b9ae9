//! The resources in force as a snapshot.

use std::sync::Arc;

use crate::model::{
    Object, Snapshot, decode::Resource, endpoints::Endpoints, service::Service,
    service_entry::ServiceEntry, sidecar::Sidecar, snapshot::same, virtual_service::VirtualService,
    workload::WorkloadEntry,
};

/// The lists of the last snapshot.
#[derive(Default)]
pub struct Lists {
    sidecars: List<Sidecar>,
    services: List<Service>,
    endpoints: List<Endpoints>,
    service_entries: List<ServiceEntry>,
    virtual_services: List<VirtualService>,
    workloads: List<WorkloadEntry>,
}

impl Lists {
    /// The snapshot of these resources; [`Snapshot::dns`] is left empty.
    pub fn snapshot<'a>(&mut self, resources: impl Iterator<Item = &'a Resource>) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for resource in resources {
            match resource {
                Resource::Sidecar(object) => snapshot.sidecars.push(object.clone()),
                Resource::Service(object) => snapshot.services.push(object.clone()),
                Resource::EndpointSlice(object) | Resource::Endpoints(object) => {
                    snapshot.endpoints.push(object.clone());
                }
                Resource::ServiceEntry(object) => snapshot.service_entries.push(object.clone()),
                Resource::WorkloadEntry(object) => snapshot.workloads.push(object.clone()),
                Resource::VirtualService(object) => snapshot.virtual_services.push(object.clone()),
                Resource::MeshConfig(object) => {
                    snapshot.mesh_origin = Some(resource.reference());
                    snapshot.mesh = object.spec.clone();
                }
            }
        }
        self.sidecars.sort(&mut snapshot.sidecars);
        self.services.sort(&mut snapshot.services);
        self.endpoints.sort(&mut snapshot.endpoints);
        self.service_entries.sort(&mut snapshot.service_entries);
        self.virtual_services.sort(&mut snapshot.virtual_services);
        self.workloads.sort(&mut snapshot.workloads);
        snapshot
    }
}

/// Resources of one kind, as they were found, and in order: most changes leave most kinds as they
/// are.
struct List<T> {
    found: Vec<Arc<Object<T>>>,
    sorted: Vec<Arc<Object<T>>>,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self {
            found: Vec::new(),
            sorted: Vec::new(),
        }
    }
}

impl<T> List<T> {
    /// Brings them into Istio's order: the oldest first.
    fn sort(&mut self, objects: &mut Vec<Arc<Object<T>>>) {
        if !same(self.found.iter(), objects) {
            self.found.clone_from(objects);
            self.sorted.clone_from(objects);
            self.sorted.sort_by(|a, b| a.order().cmp(&b.order()));
        }
        objects.clone_from(&self.sorted);
    }
}
