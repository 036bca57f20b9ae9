//! Objects of the API server as documents, which are read as those in files are.

use std::sync::Arc;

use kube::core::DynamicObject;
use serde_json::{Map, Value, json};

use super::watched::Watched;

/// What `kubectl apply` remembers, which is the whole object again.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// What is read of a `Service`.
const OF_SERVICE: &[&str] = &[
    "clusterIP",
    "clusterIPs",
    "externalName",
    "ports",
    "selector",
    "type",
];
/// What the annotations begin with that count for a `Service`.
const OF_ISTIO: &str = "networking.istio.io/";

/// A resource as text, as it would be in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// What stands for the file's name: `Sidecar prod/shop (cluster)`.
    pub name: Arc<str>,
    /// The text.
    pub text: Arc<str>,
}

impl Document {
    /// What is read of an object; `None`: nothing, or it has no text.
    pub(super) fn new(of: Watched, object: DynamicObject) -> Option<Self> {
        let metadata = &object.metadata;
        let name = metadata.name.as_deref().unwrap_or_default();
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        let kind = match &object.types {
            Some(types) if of != Watched::MeshConfig => types.kind.clone(),
            _ => of.kind().to_owned(),
        };
        let name = format!("{kind} {namespace}/{name} (cluster)");
        let text = match of {
            Watched::MeshConfig => mesh(&object)?.to_owned(),
            _ => serde_json::to_string_pretty(&kept(of, object)).ok()?,
        };
        Some(Self {
            name: name.into(),
            text: text.into(),
        })
    }
}

/// The mesh configuration in its `ConfigMap`.
fn mesh(object: &DynamicObject) -> Option<&str> {
    object.data.get("data")?.get("mesh")?.as_str()
}

/// The part of an object that is read.
fn kept(of: Watched, object: DynamicObject) -> Value {
    let DynamicObject {
        types,
        metadata,
        mut data,
    } = object;
    let types = types.unwrap_or_default();
    let mut annotations = metadata.annotations.unwrap_or_default();
    annotations.remove(LAST_APPLIED);
    let mut meta = Map::new();
    meta.insert("name".into(), json!(metadata.name));
    if let Some(namespace) = metadata.namespace {
        meta.insert("namespace".into(), json!(namespace));
    }
    if let Some(created) = metadata.creation_timestamp {
        meta.insert("creationTimestamp".into(), json!(created));
    }
    if let Some(labels) = metadata.labels.filter(|labels| !labels.is_empty()) {
        meta.insert("labels".into(), json!(labels));
    }
    let mut fields: Vec<&str> = vec!["spec"];
    match of {
        Watched::Service => {
            annotations.retain(|key, _| key.starts_with(OF_ISTIO));
            if let Some(spec) = data.get_mut("spec").and_then(Value::as_object_mut) {
                spec.retain(|field, _| OF_SERVICE.contains(&&**field));
            }
        }
        Watched::HeadlessSlices | Watched::OtherSlices => {
            annotations.clear();
            fields = vec!["addressType", "endpoints", "ports", "subsets"];
        }
        _ => {}
    }
    if !annotations.is_empty() {
        meta.insert("annotations".into(), json!(annotations));
    }
    let mut kept = Map::new();
    kept.insert("apiVersion".into(), types.api_version.into());
    kept.insert("kind".into(), types.kind.into());
    kept.insert("metadata".into(), meta.into());
    for field in fields {
        if let Some(value) = data.get_mut(field).map(Value::take) {
            kept.insert(field.into(), value);
        }
    }
    kept.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{decode, tree::Source};

    fn document(of: Watched, object: Value) -> Option<Document> {
        Document::new(of, serde_json::from_value(object).unwrap())
    }

    #[test]
    fn what_is_read_is_kept_and_nothing_else() {
        let document = document(
            Watched::Service,
            json!({
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {
                    "name": "shop", "namespace": "prod", "uid": "u", "resourceVersion": "7",
                    "creationTimestamp": "2026-11-30T16:00:00Z",
                    "labels": {"app": "\"shop\"\n: no"},
                    "annotations": {
                        LAST_APPLIED: "{}",
                        "x/y": "z",
                        "networking.istio.io/exportTo": "prod,ops",
                    },
                    "managedFields": [{"manager": "kubectl"}],
                },
                "spec": {
                    "clusterIP": "10.96.0.1",
                    "ipFamilies": ["IPv4"],
                    "ports": [{"port": 80, "targetPort": "http", "nodePort": 30000}],
                },
                "status": {"loadBalancer": {}},
            }),
        )
        .unwrap();
        assert_eq!(&*document.name, "Service prod/shop (cluster)");
        for gone in [
            "managedFields",
            LAST_APPLIED,
            "x/y",
            "status",
            "ipFamilies",
            "uid",
        ] {
            assert!(!document.text.contains(gone), "{gone}: {}", document.text);
        }
        let decoded = decode::text(&Source::new(&*document.name, &*document.text));
        assert!(decoded.diagnostics.is_empty(), "{:?}", decoded.diagnostics);
        let [decode::Resource::Service(service)] = &decoded.resources[..] else {
            panic!("{:?}", decoded.resources)
        };
        assert_eq!(service.meta.labels["app"], "\"shop\"\n: no");
        assert_eq!(service.meta.created, 1_796_054_400);
        assert_eq!(service.spec.export_to.as_ref().unwrap(), &["prod", "ops"]);
        assert_eq!(&*service.origin.file, "Service prod/shop (cluster)");
    }

    #[test]
    fn a_custom_resource_keeps_its_whole_spec() {
        let spec = json!({"egress": [{"hosts": ["~/*"], "unheardOf": 1}]});
        let document = document(
            Watched::Sidecar,
            json!({
                "apiVersion": "networking.istio.io/v1beta1",
                "kind": "Sidecar",
                "metadata": {"name": "a", "namespace": "b", "generation": 3},
                "spec": spec,
                "status": {"conditions": []},
            }),
        )
        .unwrap();
        let text: Value = serde_json::from_str(&document.text).unwrap();
        assert_eq!(
            text,
            json!({
                "apiVersion": "networking.istio.io/v1beta1",
                "kind": "Sidecar",
                "metadata": {"name": "a", "namespace": "b"},
                "spec": spec,
            })
        );
    }

    #[test]
    fn the_mesh_configuration_is_what_its_key_says() {
        let map = |data: Value| {
            let metadata = json!({"name": "istio", "namespace": "istio-system"});
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
        };
        let mesh = "outboundTrafficPolicy:\n  mode: REGISTRY_ONLY\n";
        let found = document(Watched::MeshConfig, map(json!({"mesh": mesh}))).unwrap();
        assert_eq!(&*found.text, mesh);
        assert_eq!(&*found.name, "MeshConfig istio-system/istio (cluster)");
        assert_eq!(
            document(Watched::MeshConfig, map(json!({"other": ""}))),
            None
        );
    }
}
