//! The service registry: Kubernetes services and service entries in one form.

mod convert;
mod made;
mod service;
mod workloads;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use foldhash::fast::RandomState;

use crate::model::Snapshot;

use super::select;

pub use convert::canonical;
pub use service::{Discovery, Port, Provider, Service};
pub use workloads::labels;

/// All services, in the order of [`Service::order`], and who may see them.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    services: Vec<Arc<Service>>,
    /// What `exportTo` is where it is absent.
    default_export_to: BTreeSet<String>,
    index: Arc<Index>,
    /// Endpoints at which their service has listeners: all but the workload's own.
    called_at: HashSet<IpAddr>,
}

/// Positions of services, by what is asked for. It depends on their names and `exportTo` only.
#[derive(Debug, Default)]
struct Index {
    /// Exported to everybody.
    public: Positions,
    /// The same, by the services' own namespace.
    public_of: ByName,
    /// Exported to single namespaces, their own or others.
    exported: ByName,
    by_hostname: ByName,
    by_namespace: ByName,
    /// By position: whether other services have the same host name.
    shares_name: Vec<bool>,
}

type Positions = Vec<usize>;
type ByName = HashMap<Arc<str>, Positions, RandomState>;

impl Registry {
    /// The services of a snapshot.
    #[must_use]
    pub fn new(snapshot: &Snapshot) -> Self {
        let mut source = Source::default();
        source.update(snapshot);
        source.registry
    }

    /// A registry of these services in this order; `default_export_to` holds for those that say
    /// nothing.
    #[must_use]
    pub fn from_services(services: Vec<Service>, default_export_to: &[String]) -> Self {
        let default_export_to = default_export_to.iter().cloned().collect();
        let services: Vec<_> = services.into_iter().map(Arc::new).collect();
        Self {
            index: Arc::new(Index::new(&services, &default_export_to)),
            called_at: called_at(&services),
            services,
            default_export_to,
        }
    }

    /// Whether there is no service at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// Every service `namespace` may see, with its position in the registry's order: those
    /// exported to it by name first, then the public ones. `scopes`: of the public ones only those
    /// of these namespaces, each named once.
    pub fn visible<'a>(
        &'a self,
        namespace: &str,
        scopes: Option<&[&str]>,
    ) -> impl Iterator<Item = (usize, &'a Service)> + use<'a> {
        let public = match scopes {
            None => Cow::Borrowed(&*self.index.public),
            Some(scopes) => {
                let of = |scope: &&str| positions(&self.index.public_of, scope);
                let mut positions: Vec<usize> = scopes.iter().flat_map(of).copied().collect();
                positions.sort_unstable();
                Cow::Owned(positions)
            }
        };
        let exported = positions(&self.index.exported, namespace);
        let all = (0..exported.len() + public.len()).filter_map(move |n| {
            exported
                .get(n)
                .or_else(|| public.get(n - exported.len()))
                .copied()
        });
        all.filter_map(|position| Some((position, &**self.services.get(position)?)))
    }

    /// Every service with this host name, in the registry's order.
    pub fn by_hostname(&self, hostname: &str) -> impl Iterator<Item = (usize, &Service)> {
        self.at(positions(&self.index.by_hostname, hostname))
    }

    /// Whether `namespace` may see the service at this position.
    #[must_use]
    pub fn is_visible(&self, position: usize, namespace: &str) -> bool {
        self.index.public.binary_search(&position).is_ok()
            || positions(&self.index.exported, namespace).contains(&position)
    }

    /// Whether `namespace` may see this service, which need not be in the registry.
    #[must_use]
    pub fn is_exported(&self, service: &Service, namespace: &str) -> bool {
        let export_to = export_to(service, &self.default_export_to);
        let own = *service.namespace == *namespace;
        export_to.contains("*")
            || !export_to.contains("~")
                && (export_to.contains(namespace) || own && export_to.contains("."))
    }

    /// Whether other services have the host name of the one at this position.
    #[must_use]
    pub fn shares_name(&self, position: usize) -> bool {
        self.index
            .shares_name
            .get(position)
            .is_some_and(|shares| *shares)
    }

    /// Services of `namespace` that select a workload with these labels, oldest first.
    pub fn selecting<'a>(
        &'a self,
        namespace: &str,
        labels: &'a BTreeMap<String, String>,
    ) -> impl Iterator<Item = &'a Service> {
        self.at(positions(&self.index.by_namespace, namespace))
            .map(|(_, service)| service)
            .filter(move |service| {
                !service.selector.is_empty() && select::matches(&service.selector, labels)
            })
    }

    /// Whether workloads of `namespace` see services otherwise than workloads of namespaces that
    /// have nothing to do with any service: some are exported to it by name, or it has one of
    /// several of the same name.
    #[must_use]
    pub fn is_particular(&self, namespace: &str) -> bool {
        self.index.exported.contains_key(namespace)
            || positions(&self.index.by_namespace, namespace)
                .iter()
                .any(|position| self.shares_name(*position))
    }

    /// Whether a service is called at this endpoint of it, so that the workload which has the
    /// address lacks a listener that others have.
    #[must_use]
    pub fn is_called_at(&self, endpoint: IpAddr) -> bool {
        self.called_at.contains(&endpoint)
    }

    fn at<'a>(
        &'a self,
        positions: impl IntoIterator<Item = &'a usize>,
    ) -> impl Iterator<Item = (usize, &'a Service)> {
        positions
            .into_iter()
            .filter_map(|position| Some((*position, &**self.services.get(*position)?)))
    }
}

fn positions<'a>(index: &'a ByName, key: &str) -> &'a [usize] {
    index.get(key).map_or(&[], Vec::as_slice)
}

impl Index {
    fn new(services: &[Arc<Service>], default_export_to: &BTreeSet<String>) -> Self {
        let mut index = Self::default();
        for (position, service) in services.iter().enumerate() {
            let add = |to: &mut ByName, key: &Arc<str>| {
                to.entry(Arc::clone(key)).or_default().push(position);
            };
            let own = &service.namespace;
            add(&mut index.by_hostname, &service.hostname);
            add(&mut index.by_namespace, own);
            let export_to = export_to(service, default_export_to);
            if export_to.contains("*") {
                index.public.push(position);
                add(&mut index.public_of, own);
            } else if !export_to.contains("~") {
                let named = export_to.iter().map(String::as_str);
                let to: BTreeSet<&str> = named
                    .map(|to| if to == "." { &**own } else { to })
                    .collect();
                for namespace in to {
                    if let Some(known) = index.exported.get_mut(namespace) {
                        known.push(position);
                    } else {
                        index.exported.insert(namespace.into(), vec![position]);
                    }
                }
            }
        }
        index.shares_name = vec![false; services.len()];
        for positions in index.by_hostname.values().filter(|of| of.len() > 1) {
            for position in positions {
                index.shares_name[*position] = true;
            }
        }
        index
    }
}

fn export_to<'a>(service: &'a Service, default: &'a BTreeSet<String>) -> &'a BTreeSet<String> {
    if service.export_to.is_empty() {
        default
    } else {
        &service.export_to
    }
}

fn called_at(services: &[Arc<Service>]) -> HashSet<IpAddr> {
    let ports = services
        .iter()
        .filter(|service| service.is_called_at_endpoints())
        .flat_map(|service| &service.ports);
    ports.flat_map(Port::ips).collect()
}

/// The registries of one snapshot after another.
#[derive(Debug, Default)]
pub struct Source {
    made: made::Made,
    registry: Registry,
}

impl Source {
    /// The registry of the last snapshot.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Takes the next snapshot. Returns the services that came, went, or changed, in all versions
    /// there are. A change of `defaultServiceExportTo` is none of the services.
    pub fn update(&mut self, snapshot: &Snapshot) -> Vec<Arc<Service>> {
        let made = self.made.update(snapshot);
        let default_export_to: BTreeSet<String> = snapshot
            .mesh
            .default_service_export_to
            .iter()
            .cloned()
            .collect();
        let before = &self.registry.services;
        let same_default = default_export_to == self.registry.default_export_to;
        let services = match made {
            None if same_default => return Vec::new(),
            None => before.clone(),
            Some(services) => services,
        };
        let same_index = same_default
            && before.len() == services.len()
            && before.iter().zip(&services).all(|(a, b)| {
                Arc::ptr_eq(a, b)
                    || a.hostname == b.hostname
                        && a.namespace == b.namespace
                        && a.export_to == b.export_to
            });
        let index = if same_index {
            Arc::clone(&self.registry.index)
        } else {
            Arc::new(Index::new(&services, &default_export_to))
        };
        let changed = difference(before, &services);
        self.registry = Registry {
            called_at: called_at(&services),
            services,
            default_export_to,
            index,
        };
        changed
    }
}

/// What is in one list only, by allocation.
fn difference(before: &[Arc<Service>], after: &[Arc<Service>]) -> Vec<Arc<Service>> {
    let same = |pair: &(&Arc<Service>, &Arc<Service>)| Arc::ptr_eq(pair.0, pair.1);
    let start = before.iter().zip(after).take_while(same).count();
    let (before, after) = (&before[start..], &after[start..]);
    let end = before
        .iter()
        .rev()
        .zip(after.iter().rev())
        .take_while(same)
        .count();
    let before = &before[..before.len() - end];
    let after = &after[..after.len() - end];
    let addresses =
        |list: &[Arc<Service>]| -> HashSet<_> { list.iter().map(Arc::as_ptr).collect() };
    let (known, present) = (addresses(before), addresses(after));
    let gone = before
        .iter()
        .filter(|of| !present.contains(&Arc::as_ptr(of)));
    let new = after.iter().filter(|of| !known.contains(&Arc::as_ptr(of)));
    gone.chain(new).cloned().collect()
}
