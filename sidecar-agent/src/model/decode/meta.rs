//! `metadata`.

use std::collections::BTreeMap;

use crate::model::{
    catalogue as codes,
    diagnostic::Finding,
    meta::ObjectMeta,
    schema::{Object, Type, map, open, optional, required},
    tree::Node,
    validate::syntax,
};

/// The namespace of resources that name none.
const DEFAULT_NAMESPACE: &str = "default";

/// `metadata`; it has more fields, which the API server sets.
pub(super) static META: Object = open(&[
    required("name", Type::Text),
    optional("namespace", Type::Text),
    optional("labels", map(&Type::Text)),
    optional("annotations", map(&Type::Text)),
    optional("creationTimestamp", Type::Text),
]);

/// Decodes `metadata`, and checks what a schema cannot.
pub(super) fn decode(metadata: &Node) -> (ObjectMeta, Vec<Finding>) {
    let mut findings = Vec::new();
    let name = metadata.text("name");
    if metadata
        .get("name")
        .is_some_and(|node| node.as_text().is_some())
        && !syntax::is_object_name(name)
    {
        let message = format!("`{name}` is not a name of a resource");
        findings.push(Finding::new(codes::BAD_NAME, "metadata.name", message));
    }
    let namespace = match metadata.text("namespace") {
        "" => DEFAULT_NAMESPACE,
        namespace => namespace,
    };
    if !syntax::is_object_name(namespace) || !syntax::is_dns_label(namespace) {
        let message = format!("`{namespace}` is not a name of a namespace");
        findings.push(Finding::new(codes::BAD_NAME, "metadata.namespace", message));
    }
    let created = match metadata.text("creationTimestamp") {
        "" => 0,
        text => text.parse().map_or_else(
            |cause: jiff::Error| {
                let message = format!("`{text}`: {cause}");
                let field = "metadata.creationTimestamp";
                findings.push(Finding::new(codes::BAD_TIMESTAMP, field, message));
                0
            },
            jiff::Timestamp::as_second,
        ),
    };
    let meta = ObjectMeta {
        name: name.into(),
        namespace: namespace.into(),
        labels: strings(metadata, "labels"),
        annotations: strings(metadata, "annotations"),
        created,
    };
    (meta, findings)
}

/// The mapping of strings at a key.
pub(super) fn strings(node: &Node, key: &str) -> BTreeMap<String, String> {
    node.labels(key)
        .map(|(key, value)| (key.into(), value.into()))
        .collect()
}
