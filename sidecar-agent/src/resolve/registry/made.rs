//! The services of one snapshot after another: what did not change is not made again, and stays
//! the same allocation.

use std::{
    cell::LazyCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use crate::{
    compile::plan::Target,
    model::{
        Object, Snapshot, endpoints::Endpoints, service, service_entry::ServiceEntry,
        snapshot::same, workload::WorkloadEntry,
    },
};

use super::{
    convert::{Environment, Selected, sorted},
    service::{Discovery, Port, Provider, Service},
    workloads::WorkloadIndex,
};

/// The services of a snapshot, and what they were made from.
#[derive(Debug, Default)]
pub(super) struct Made {
    kubernetes: Vec<Entry<service::Service>>,
    external: Vec<Entry<ServiceEntry>>,
    workloads: Vec<Arc<Object<WorkloadEntry>>>,
    endpoints: Vec<Arc<Object<Endpoints>>>,
    cluster_domain: String,
    dns: BTreeMap<String, BTreeSet<IpAddr>>,
    /// Services that have endpoints of others too: as made, and as they came out.
    shared: Vec<(Arc<Service>, Arc<Service>)>,
}

/// A resource, and what was made of it.
#[derive(Debug)]
struct Entry<T> {
    object: Arc<Object<T>>,
    selected: Selected,
    services: Vec<Arc<Service>>,
}

impl Made {
    /// The services of the next snapshot, in order; `None`: they are those of the one before.
    pub fn update(&mut self, snapshot: &Snapshot) -> Option<Vec<Arc<Service>>> {
        if self.is_of(snapshot) {
            return None;
        }
        let domain = &snapshot.mesh.cluster_domain;
        let changes = Changes {
            index: LazyCell::new(Box::new(|| WorkloadIndex::new(&snapshot.workloads))),
            by_service: LazyCell::new(Box::new(|| by_service(&snapshot.endpoints))),
            selected: !same(self.workloads.iter(), &snapshot.workloads)
                || !same(self.endpoints.iter(), &snapshot.endpoints),
            cluster_domain: self.cluster_domain != *domain,
            dns: self.dns != snapshot.dns,
        };
        let environment = Environment {
            cluster_domain: domain,
            dns: &snapshot.dns,
        };
        changes.renew(
            &mut self.kubernetes,
            &snapshot.services,
            |object| changes.of_service(object),
            |object, selected| vec![environment.kubernetes(object, selected)],
        );
        changes.renew(
            &mut self.external,
            &snapshot.service_entries,
            |object| changes.of_entry(object),
            |object, selected| environment.external(object, selected).collect(),
        );
        if changes.selected {
            self.workloads.clone_from(&snapshot.workloads);
            self.endpoints.clone_from(&snapshot.endpoints);
        }
        if changes.cluster_domain {
            self.cluster_domain.clone_from(domain);
        }
        if changes.dns {
            self.dns.clone_from(&snapshot.dns);
        }
        let kubernetes = self.kubernetes.iter().flat_map(|entry| &entry.services);
        let external = self.external.iter().flat_map(|entry| &entry.services);
        let mut services: Vec<Arc<Service>> = kubernetes.chain(external).cloned().collect();
        services.sort_by(|a, b| a.order().cmp(&b.order()));
        self.share_endpoints(&mut services);
        Some(services)
    }

    fn is_of(&self, snapshot: &Snapshot) -> bool {
        let kubernetes = self.kubernetes.iter().map(|entry| &entry.object);
        let external = self.external.iter().map(|entry| &entry.object);
        same(kubernetes, &snapshot.services)
            && same(external, &snapshot.service_entries)
            && same(self.workloads.iter(), &snapshot.workloads)
            && same(self.endpoints.iter(), &snapshot.endpoints)
            && self.cluster_domain == snapshot.mesh.cluster_domain
            && self.dns == snapshot.dns
    }

    /// Service entries of one host in one namespace are parts of one service: Istio keeps
    /// endpoints by host name, namespace and port, so that each has the endpoints of all. Entries
    /// whose endpoints are found in other ways do not take part.
    fn share_endpoints(&mut self, services: &mut [Arc<Service>]) {
        let mut by_host: HashMap<(&str, &str), Vec<usize>> = HashMap::new();
        for (index, service) in services.iter().enumerate() {
            if service.provider == Provider::External && service.discovery == Discovery::Listed {
                let host = (&*service.namespace, &*service.hostname);
                by_host.entry(host).or_default().push(index);
            }
        }
        let before: HashMap<_, _> = std::mem::take(&mut self.shared)
            .into_iter()
            .map(|(made, shared)| (Arc::as_ptr(&made), (made, shared)))
            .collect();
        let groups: Vec<Vec<usize>> = by_host.into_values().filter(|of| of.len() > 1).collect();
        for group in groups {
            let mut endpoints: HashMap<u16, Vec<Target>> = HashMap::new();
            for port in group.iter().flat_map(|index| &services[*index].ports) {
                let all = endpoints.entry(port.number).or_default();
                all.extend(port.endpoints.iter().cloned());
            }
            for index in group {
                let made = &services[index];
                let mut shared = Service::clone(made);
                for Port {
                    number,
                    endpoints: own,
                    ..
                } in &mut shared.ports
                {
                    if let Some(all) = endpoints.get(number) {
                        *own = sorted(all.clone()).into();
                    }
                }
                let known = before.get(&Arc::as_ptr(made)).map(|(_, known)| known);
                let shared = known
                    .filter(|known| ***known == shared)
                    .map_or_else(|| Arc::new(shared), Arc::clone);
                self.shared.push((Arc::clone(made), Arc::clone(&shared)));
                services[index] = shared;
            }
        }
    }
}

/// What differs from the snapshot before.
struct Changes<'a> {
    /// The workloads, indexed when the first selector asks.
    index: LazyCell<WorkloadIndex<'a>, Box<dyn FnOnce() -> WorkloadIndex<'a> + 'a>>,
    /// What is told of endpoints, by namespace and service, when the first service asks.
    by_service: LazyCell<ByService<'a>, Box<dyn FnOnce() -> ByService<'a> + 'a>>,
    /// Workloads, or what is told of endpoints.
    selected: bool,
    cluster_domain: bool,
    dns: bool,
}

/// What is told of endpoints, by namespace and service.
type ByService<'a> = HashMap<(&'a str, &'a str), Vec<&'a Arc<Object<Endpoints>>>>;

fn by_service(endpoints: &[Arc<Object<Endpoints>>]) -> ByService<'_> {
    let mut all = ByService::new();
    for of in endpoints {
        let key = (of.meta.namespace.as_str(), of.spec.service.as_str());
        all.entry(key).or_default().push(of);
    }
    all
}

impl Changes<'_> {
    /// Where the endpoints of a Kubernetes service are. Pods are known by what the cluster tells of
    /// endpoints, which counts for headless services: those of others are the cluster's business.
    fn of_service(&self, object: &Object<service::Service>) -> Selected {
        let Object { meta, spec, .. } = object;
        let selector = spec.effective_selector();
        let told = || {
            let key = (meta.namespace.as_str(), meta.name.as_str());
            let told = self.by_service.get(&key).into_iter().flatten();
            told.map(|of| Arc::clone(of)).collect()
        };
        Selected {
            workloads: selector
                .map(|selector| self.index.selected(&meta.namespace, selector, false))
                .unwrap_or_default(),
            endpoints: if spec.headless { told() } else { Vec::new() },
        }
    }

    /// Where the endpoints of a service entry are.
    fn of_entry(&self, object: &Object<ServiceEntry>) -> Selected {
        let selector = object.spec.selector.as_ref();
        let workloads = selector
            .map(|selector| self.index.selected(&object.meta.namespace, selector, true))
            .unwrap_or_default();
        Selected {
            workloads,
            endpoints: Vec::new(),
        }
    }

    /// Makes the entries of `objects` from those before; both are in the same order.
    fn renew<T>(
        &self,
        entries: &mut Vec<Entry<T>>,
        objects: &[Arc<Object<T>>],
        select: impl Fn(&Object<T>) -> Selected,
        make: impl Fn(&Object<T>, &Selected) -> Vec<Service>,
    ) {
        let mut before = std::mem::take(entries).into_iter().peekable();
        entries.extend(objects.iter().map(|object| {
            let known = before
                .next_if(|known| Arc::ptr_eq(&known.object, object))
                .or_else(|| {
                    let wanted = object.order();
                    while before
                        .next_if(|known| known.object.order() < wanted)
                        .is_some()
                    {}
                    before.next_if(|known| known.object.order() == wanted)
                });
            let is_same = |known: &Entry<T>| {
                Arc::ptr_eq(&known.object, object) && !self.concern(&known.services)
            };
            match known {
                Some(known) if !self.selected && is_same(&known) => known,
                known => {
                    let selected = select(object);
                    match known {
                        Some(known) if known.selected.is(&selected) && is_same(&known) => known,
                        known => {
                            let services = make(object, &selected);
                            Entry {
                                object: Arc::clone(object),
                                selected,
                                services: keep_equal(known, services),
                            }
                        }
                    }
                }
            }
        }));
    }

    /// Whether services are to be made again although their resource is the same.
    fn concern(&self, services: &[Arc<Service>]) -> bool {
        self.cluster_domain || self.dns && services.iter().any(|of| !of.dns.is_empty())
    }
}

/// Services that came out as before stay what they were.
fn keep_equal<T>(known: Option<Entry<T>>, services: Vec<Service>) -> Vec<Arc<Service>> {
    let known = known.map(|known| known.services).unwrap_or_default();
    let mut known = known.into_iter();
    let each = services.into_iter().map(|service| match known.next() {
        Some(known) if *known == service => known,
        _ => Arc::new(service),
    });
    each.collect()
}
