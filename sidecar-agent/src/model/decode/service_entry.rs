//! `ServiceEntry`: its schema and its decoder.

use super::{
    sidecar::{WORKLOAD_SELECTOR, selector},
    workload_entry,
};
use crate::model::{
    schema::{MAX_U32, Object, Type, list, optional, required, strict},
    service_entry::{Resolution, ServiceEntry, ServiceEntryPort},
    tree::Node,
    validate::service_entry::network,
};

/// `spec`.
pub(super) static SPEC: Object = strict(&[
    required("hosts", list(&Type::Text)),
    optional("addresses", list(&Type::Text)),
    optional("ports", list(&Type::Object(&PORT))),
    optional("location", Type::Enum(&["MESH_EXTERNAL", "MESH_INTERNAL"])),
    optional(
        "resolution",
        Type::Enum(&["NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS"]),
    ),
    optional("endpoints", list(&Type::Object(&workload_entry::SPEC))),
    optional("workloadSelector", Type::Object(&WORKLOAD_SELECTOR)),
    optional("exportTo", list(&Type::Text)),
    // What the proxy checks the server's certificate for.
    optional("subjectAltNames", list(&Type::Text)),
]);

static PORT: Object = strict(&[
    required("number", Type::Int(0, MAX_U32)),
    optional("protocol", Type::Text),
    required("name", Type::Text),
    optional("targetPort", Type::Int(0, MAX_U32)),
]);

/// Decodes a spec without errors.
pub(super) fn decode(spec: &Node) -> ServiceEntry {
    ServiceEntry {
        hosts: spec.texts("hosts").map(Into::into).collect(),
        addresses: spec.texts("addresses").filter_map(network).collect(),
        ports: spec.list("ports").iter().map(port).collect(),
        mesh_internal: spec.text("location") == "MESH_INTERNAL",
        resolution: match spec.text("resolution") {
            "STATIC" => Resolution::Static,
            "DNS" => Resolution::Dns,
            "DNS_ROUND_ROBIN" => Resolution::DnsRoundRobin,
            _ => Resolution::None,
        },
        endpoints: spec
            .list("endpoints")
            .iter()
            .map(workload_entry::endpoint)
            .collect(),
        selector: selector(spec),
        export_to: spec
            .get("exportTo")
            .map(|_| spec.texts("exportTo").map(Into::into).collect()),
    }
}

fn port(port: &Node) -> ServiceEntryPort {
    let number = |key| port.int(key).and_then(|number| u16::try_from(number).ok());
    ServiceEntryPort {
        number: number("number").unwrap_or(0),
        protocol: port.text("protocol").into(),
        name: port.text("name").into(),
        target: number("targetPort").filter(|&target| target != 0),
    }
}
