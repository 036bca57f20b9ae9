//! `WorkloadEntry`, also as an endpoint of a `ServiceEntry`: its schema and its decoder.

use std::collections::BTreeMap;

use super::meta::strings;
use crate::model::{
    schema::{MAX_U32, Object, Type, map, optional, strict},
    tree::Node,
    workload::WorkloadEntry,
};

/// `spec`.
pub(super) static SPEC: Object = strict(&[
    optional("address", Type::Text),
    optional("ports", map(&Type::Int(0, MAX_U32))),
    optional("labels", map(&Type::Text)),
    optional("network", Type::Text),
    optional("locality", Type::Text),
    optional("weight", Type::Int(0, MAX_U32)),
    optional("serviceAccount", Type::Text),
]);

/// Decodes a spec without errors. As in Istio, labels of the metadata are labels of the workload
/// too, and come before those of the spec.
pub(super) fn decode(spec: &Node, labels: &BTreeMap<String, String>) -> WorkloadEntry {
    let mut entry = endpoint(spec);
    entry.labels.extend(labels.clone());
    entry
}

/// Decodes an endpoint without errors.
pub(super) fn endpoint(endpoint: &Node) -> WorkloadEntry {
    let ports = endpoint.get("ports").map_or(&[][..], Node::entries);
    WorkloadEntry {
        address: endpoint.text("address").into(),
        ports: ports
            .iter()
            .filter_map(|(key, port)| Some((key.name.clone(), port.as_int()?.try_into().ok()?)))
            .collect(),
        labels: strings(endpoint, "labels"),
        weight: endpoint
            .int("weight")
            .and_then(|weight| weight.try_into().ok())
            .unwrap_or(0),
        is_pod: false,
    }
}
