//! `VirtualService`: the fields that are read, and its decoder. The rest of its API is large, and
//! the proxy's.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{
    schema::{MAX_U32, Object, Type, list, open, optional},
    tree::Node,
    virtual_service::VirtualService,
};

/// `spec`.
pub(super) static SPEC: Object = open(&[
    optional("hosts", list(&Type::Text)),
    optional("gateways", list(&Type::Text)),
    optional("exportTo", list(&Type::Text)),
    optional("http", list(&Type::Object(&HTTP))),
    optional("tcp", list(&Type::Object(&TCP))),
    optional("tls", list(&Type::Object(&TCP))),
]);

static HTTP: Object = open(&[
    optional("route", list(&Type::Object(&ROUTE))),
    optional("mirror", Type::Object(&DESTINATION)),
    optional("mirrors", list(&Type::Object(&ROUTE))),
]);

static TCP: Object = open(&[optional("route", list(&Type::Object(&ROUTE)))]);

static ROUTE: Object = open(&[optional("destination", Type::Object(&DESTINATION))]);

static DESTINATION: Object = open(&[
    optional("host", Type::Text),
    optional("port", Type::Object(&PORT)),
]);

static PORT: Object = open(&[optional("number", Type::Int(0, MAX_U32))]);

/// Decodes a spec without errors.
pub(super) fn decode(spec: &Node) -> VirtualService {
    let texts = |key| spec.texts(key).map(Into::into).collect();
    let mut destinations = Destinations::default();
    for routes in ["http", "tcp", "tls"] {
        for route in spec.list(routes) {
            for to in route.list("route").iter().chain(route.list("mirrors")) {
                destinations.add(to.get("destination"));
            }
            destinations.add(route.get("mirror"));
        }
    }
    VirtualService {
        hosts: texts("hosts"),
        gateways: texts("gateways"),
        export_to: spec.get("exportTo").map(|_| texts("exportTo")),
        destinations: destinations.0,
    }
}

#[derive(Default)]
struct Destinations(BTreeMap<String, BTreeSet<u16>>);

impl Destinations {
    fn add(&mut self, destination: Option<&Node>) {
        let host = destination.map_or("", |destination| destination.text("host"));
        if host.is_empty() {
            return;
        }
        let port = destination
            .and_then(|destination| destination.get("port")?.int("number"))
            .and_then(|number| u16::try_from(number).ok())
            .filter(|number| *number != 0);
        let known = self.0.contains_key(host);
        let ports = self.0.entry(host.into()).or_default();
        match port {
            // One route without a port needs all of them.
            None => ports.clear(),
            Some(_) if known && ports.is_empty() => {}
            Some(port) => _ = ports.insert(port),
        }
    }
}
