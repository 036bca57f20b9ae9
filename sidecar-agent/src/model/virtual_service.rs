//! `VirtualService` (networking.istio.io v1, v1beta1, v1alpha3): the part that decides which
//! services are seen.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

/// Host names, as written, to ports; no ports: all.
pub type Destinations = BTreeMap<String, BTreeSet<u16>>;

/// `VirtualService.spec`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VirtualService {
    /// `hosts`, as written.
    pub hosts: Vec<String>,
    /// `gateways`; empty: `mesh`.
    pub gateways: Vec<String>,
    /// `exportTo`; `None` where absent.
    pub export_to: Option<Vec<String>>,
    /// Destinations of the routes and mirrors that hold for every namespace.
    pub destinations: Destinations,
    /// Destinations of the routes whose matches name source namespaces, with these.
    pub from_namespaces: Vec<(BTreeSet<String>, Destinations)>,
}

impl VirtualService {
    /// Whether it holds for sidecars, and not for gateways only.
    #[must_use]
    pub fn is_for_mesh(&self) -> bool {
        self.gateways.is_empty() || self.gateways.iter().any(|gateway| gateway == "mesh")
    }

    /// Adds what a route leads to. `sources` are the namespaces that its matches name.
    ///
    /// As in Istio, one match that names a namespace makes the route one of the named namespaces,
    /// whatever its other matches say; `gateways` of a match do not count.
    pub fn add_route<'a>(
        &mut self,
        sources: BTreeSet<String>,
        destinations: impl IntoIterator<Item = (&'a str, Option<u16>)>,
    ) {
        let mut of_route = Destinations::new();
        for (host, port) in destinations {
            let ports = port.into_iter().collect();
            merge(&mut of_route, [(host.to_owned(), ports)]);
        }
        if sources.is_empty() {
            merge(&mut self.destinations, of_route);
        } else {
            self.from_namespaces.push((sources, of_route));
        }
    }

    /// Destinations of the routes that hold for clients in `namespace`.
    #[must_use]
    pub fn destinations_from(&self, namespace: &str) -> Destinations {
        let mut all = self.destinations.clone();
        for (sources, destinations) in &self.from_namespaces {
            if sources.contains(namespace) {
                merge(&mut all, destinations.clone());
            }
        }
        all
    }
}

/// Adds destinations to others: one without a port needs all of them.
pub fn merge(known: &mut Destinations, new: impl IntoIterator<Item = (String, BTreeSet<u16>)>) {
    for (host, ports) in new {
        match known.entry(host) {
            Entry::Vacant(entry) => _ = entry.insert(ports),
            Entry::Occupied(mut entry) if ports.is_empty() => entry.get_mut().clear(),
            Entry::Occupied(mut entry) if !entry.get().is_empty() => entry.get_mut().extend(ports),
            Entry::Occupied(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_without_a_port_needs_all() {
        for routes in [
            [("a", None), ("a", Some(1)), ("b", Some(2))],
            [("a", Some(1)), ("b", Some(2)), ("a", None)],
        ] {
            let mut split = VirtualService::default();
            for route in routes {
                split.add_route(BTreeSet::new(), [route]);
            }
            let mut one = VirtualService::default();
            one.add_route(BTreeSet::new(), routes);
            for service in [split, one] {
                let expected = [("a".into(), [].into()), ("b".into(), [2].into())];
                assert_eq!(service.destinations_from("ns"), expected.into());
            }
        }
    }

    #[test]
    fn routes_of_source_namespaces() {
        let mut service = VirtualService::default();
        let sources = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        service.add_route(sources(&[]), [("all", Some(1))]);
        service.add_route(sources(&["a", "b"]), [("all", Some(2)), ("some", None)]);
        service.add_route(sources(&["b"]), [("some", Some(3)), ("few", Some(4))]);
        let seen = |namespace| -> Vec<(String, Vec<u16>)> {
            let of = |(host, ports): (String, BTreeSet<u16>)| (host, ports.into_iter().collect());
            service
                .destinations_from(namespace)
                .into_iter()
                .map(of)
                .collect()
        };
        let (all, some, few) = (|ports| ("all".into(), ports), "some".into(), "few".into());
        assert_eq!(seen("c"), [all(vec![1])]);
        assert_eq!(seen("a"), [all(vec![1, 2]), (some, vec![])]);
        let some = "some".into();
        assert_eq!(seen("b"), [all(vec![1, 2]), (few, vec![4]), (some, vec![])]);
    }
}
