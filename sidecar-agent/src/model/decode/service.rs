//! Kubernetes' `Service`: the part of its schema that matters, and its decoder.

use std::{collections::BTreeMap, net::IpAddr};

use super::meta;
use crate::model::{
    schema::{MAX_I32, Object, Type, list, map, open, optional, required},
    service::{Service, ServicePort, TargetPort},
    tree::{Node, Value},
    validate::service::{HEADLESS, transport},
};

/// The annotation that says which namespaces a service is visible in.
const EXPORT_TO: &str = "networking.istio.io/exportTo";

/// A document; the Kubernetes API has more fields.
pub(super) static RESOURCE: Object = open(&[
    required("apiVersion", Type::Text),
    required("kind", Type::Text),
    required("metadata", Type::Object(&meta::META)),
]);

/// `spec`; it has more fields.
pub(super) static SPEC: Object = open(&[
    optional("clusterIP", Type::Text),
    optional("clusterIPs", list(&Type::Text)),
    optional(
        "type",
        Type::Enum(&["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]),
    ),
    optional("externalName", Type::Text),
    optional("selector", map(&Type::Text)),
    optional("ports", list(&Type::Object(&PORT))),
]);

static PORT: Object = open(&[
    optional("name", Type::Text),
    required("port", Type::Int(0, MAX_I32)),
    optional("targetPort", Type::IntOrText),
    optional("protocol", Type::Enum(&["TCP", "UDP", "SCTP"])),
    optional("appProtocol", Type::Text),
]);

/// Decodes a spec without errors.
pub(super) fn decode(spec: &Node, annotations: &BTreeMap<String, String>) -> Service {
    let mut cluster_ips: Vec<_> = spec
        .texts("clusterIPs")
        .filter_map(|text| text.parse().ok())
        .collect();
    if cluster_ips.is_empty() {
        cluster_ips.extend(spec.text("clusterIP").parse::<IpAddr>());
    }
    let external = spec.text("type") == "ExternalName";
    Service {
        cluster_ips,
        headless: spec.text("clusterIP") == HEADLESS
            || spec.texts("clusterIPs").any(|text| text == HEADLESS),
        external_name: external.then(|| spec.text("externalName").into()),
        selector: meta::strings(spec, "selector"),
        ports: spec.list("ports").iter().map(port).collect(),
        export_to: annotations
            .get(EXPORT_TO)
            .map(|list| list.split(',').map(|to| to.trim().into()).collect()),
    }
}

fn port(port: &Node) -> ServicePort {
    let as_port = |number: i128| u16::try_from(number).unwrap_or(0);
    let number = as_port(port.int("port").unwrap_or(0));
    let target = match port.get("targetPort").map(|target| &target.value) {
        Some(Value::Int(target)) if *target != 0 => TargetPort::Number(as_port(*target)),
        Some(Value::Text(name)) if !name.is_empty() => TargetPort::Name(name.clone()),
        _ => TargetPort::Number(number),
    };
    ServicePort {
        name: port.text("name").into(),
        port: number,
        target,
        transport: transport(port).into(),
        app_protocol: port
            .get("appProtocol")
            .and_then(Node::as_text)
            .map(Into::into),
    }
}
