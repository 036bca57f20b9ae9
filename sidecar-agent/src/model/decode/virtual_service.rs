//! `VirtualService`: the fields that are read, and its decoder. The rest of its API is large, and
//! the proxy's.

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
    optional("match", list(&Type::Object(&MATCH))),
    optional("route", list(&Type::Object(&ROUTE))),
    optional("mirror", Type::Object(&DESTINATION)),
    optional("mirrors", list(&Type::Object(&ROUTE))),
]);

static MATCH: Object = open(&[optional("sourceNamespace", Type::Text)]);

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
    let mut service = VirtualService {
        hosts: texts("hosts"),
        gateways: texts("gateways"),
        export_to: spec.get("exportTo").map(|_| texts("exportTo")),
        ..VirtualService::default()
    };
    for routes in ["http", "tcp", "tls"] {
        for route in spec.list(routes) {
            // Istio heeds the source namespace of HTTP only.
            let matches = if routes == "http" {
                route.list("match")
            } else {
                &[]
            };
            let sources = matches.iter().map(|of| of.text("sourceNamespace"));
            let sources = sources.filter(|name| !name.is_empty()).map(Into::into);
            let weighted = route.list("route").iter().chain(route.list("mirrors"));
            let nodes = weighted.map(|to| to.get("destination"));
            let nodes = nodes.chain([route.get("mirror")]).flatten();
            service.add_route(sources.collect(), nodes.filter_map(destination));
        }
    }
    service
}

fn destination(destination: &Node) -> Option<(&str, Option<u16>)> {
    let host = destination.text("host");
    let port = destination
        .get("port")
        .and_then(|port| port.int("number"))
        .and_then(|number| u16::try_from(number).ok())
        .filter(|number| *number != 0);
    (!host.is_empty()).then_some((host, port))
}
