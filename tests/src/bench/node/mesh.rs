//! The mesh of the benchmark `scale`, as files that the agent reads.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::Context as _;
use serde_json::{Map, Value, json};
use sidecar_agent::model::{
    Object, Snapshot,
    service::{Service, TargetPort},
    service_entry::ServiceEntry,
    sidecar::{EgressListener, IngressListener, Port, Sidecar},
    virtual_service::VirtualService,
};

#[path = "../../../../sidecar-agent/benches/scale/world.rs"]
#[allow(dead_code, reason = "not all of it is for files")]
#[allow(unreachable_pub, reason = "it is the module of another program")]
mod scale;

pub use scale::{NODE, Size, mesh};

/// Writes everything but the workloads: a file for each Sidecar, one for each namespace's services,
/// one for the rest.
///
/// # Errors
/// When a file cannot be written.
pub fn write(snapshot: &Snapshot, dir: &Path) -> anyhow::Result<()> {
    let mut services: BTreeMap<&str, String> = BTreeMap::new();
    for object in &snapshot.services {
        let text = services.entry(&object.meta.namespace).or_default();
        *text += &document("v1", "Service", object, service(&object.spec));
    }
    for (namespace, text) in &services {
        save(dir, &format!("services-{namespace}"), text)?;
    }
    for object in &snapshot.sidecars {
        let name = format!("sidecar-{}-{}", object.meta.namespace, object.meta.name);
        save(
            dir,
            &name,
            &document(NETWORKING, "Sidecar", object, sidecar(&object.spec)),
        )?;
    }
    let mut rest = String::new();
    for object in &snapshot.service_entries {
        rest += &document(
            NETWORKING,
            "ServiceEntry",
            object,
            service_entry(&object.spec),
        );
    }
    for object in &snapshot.virtual_services {
        rest += &document(
            NETWORKING,
            "VirtualService",
            object,
            virtual_service(&object.spec),
        );
    }
    save(dir, "rest", &rest)
}

const NETWORKING: &str = "networking.istio.io/v1";

/// Writes a file of resources at once.
///
/// # Errors
/// When it cannot be written.
pub fn save(dir: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let file = dir.join(format!("{name}.yaml"));
    let new = file.with_extension("new");
    fs::write(&new, text)
        .and_then(|()| fs::rename(&new, &file))
        .with_context(|| format!("cannot write {}", file.display()))
}

/// A resource. JSON is YAML, too.
fn document<T>(version: &str, kind: &str, object: &Object<T>, mut spec: Value) -> String {
    let mut metadata = json!({
        "name": object.meta.name,
        "namespace": object.meta.namespace,
    });
    // Kubernetes has it there.
    if let Some(export_to) = spec
        .as_object_mut()
        .and_then(|spec| spec.remove("exportTo"))
    {
        metadata["annotations"] = json!({"networking.istio.io/exportTo": export_to});
    }
    let whole = json!({
        "apiVersion": version,
        "kind": kind,
        "metadata": metadata,
        "spec": spec,
    });
    format!("{whole}\n---\n")
}

fn service(service: &Service) -> Value {
    let ports = service.ports.iter().map(|port| {
        let target = match &port.target {
            TargetPort::Number(number) => json!(number),
            TargetPort::Name(name) => json!(name),
        };
        json!({
            "name": port.name,
            "port": port.port,
            "protocol": port.transport,
            "targetPort": target,
        })
    });
    let mut spec = json!({
        "selector": service.selector,
        "ports": ports.collect::<Vec<_>>(),
        "clusterIP": match service.cluster_ips.first() {
            Some(ip) => json!(ip),
            None => json!("None"),
        },
    });
    if let Some(export_to) = &service.export_to {
        spec["exportTo"] = export_to.join(",").into();
    }
    spec
}

fn service_entry(entry: &ServiceEntry) -> Value {
    let ports = entry.ports.iter();
    let ports = ports
        .map(|port| json!({"number": port.number, "name": port.name, "protocol": port.protocol}));
    let addresses = entry.addresses.iter().map(ToString::to_string);
    let endpoints = entry.endpoints.iter();
    let endpoints = endpoints.map(|endpoint| json!({"address": endpoint.address}));
    json!({
        "hosts": entry.hosts,
        "addresses": addresses.collect::<Vec<_>>(),
        "ports": ports.collect::<Vec<_>>(),
        "resolution": "STATIC",
        "endpoints": endpoints.collect::<Vec<_>>(),
    })
}

fn virtual_service(of: &VirtualService) -> Value {
    let routes = of.destinations.keys();
    let routes = routes.map(|host| json!({"route": [{"destination": {"host": host}}]}));
    json!({"hosts": of.hosts, "http": routes.collect::<Vec<_>>()})
}

fn sidecar(sidecar: &Sidecar) -> Value {
    let port =
        |port: &Port| json!({"number": port.number, "protocol": port.protocol, "name": port.name});
    let ingress = |listener: &IngressListener| json!({"port": port(&listener.port), "defaultEndpoint": listener.default_endpoint});
    let egress = |listener: &EgressListener| {
        let mut made = Map::new();
        made.insert("hosts".to_owned(), json!(listener.hosts));
        if let Some(of) = &listener.port {
            made.insert("port".to_owned(), port(of));
        }
        if !listener.bind.is_empty() {
            made.insert("bind".to_owned(), json!(listener.bind));
        }
        Value::from(made)
    };
    let mut spec = json!({
        "egress": sidecar.egress.iter().map(egress).collect::<Vec<_>>(),
    });
    if let Some(labels) = &sidecar.selector {
        spec["workloadSelector"] = json!({"labels": labels});
    }
    if !sidecar.ingress.is_empty() {
        spec["ingress"] = sidecar.ingress.iter().map(ingress).collect();
    }
    spec
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sidecar_agent::{model::Compat, source::files};

    use super::*;

    fn by_name<T: Clone>(objects: &[Arc<Object<T>>]) -> BTreeMap<(String, String), T> {
        let objects = objects.iter();
        objects
            .map(|of| {
                let name = (of.meta.namespace.clone(), of.meta.name.clone());
                (name, of.spec.clone())
            })
            .collect()
    }

    #[test]
    fn files_say_what_the_mesh_is() {
        let wanted = mesh(Size {
            services: 400,
            namespaces: 4,
            sidecars: 40,
            workloads: 0,
        });
        let dir = tempfile::tempdir().unwrap();
        write(&wanted, dir.path()).unwrap();
        let read = files::load(&[dir.path().to_owned()], Compat::default());
        let found = read.snapshot;
        assert_eq!(by_name(&found.services), by_name(&wanted.services));
        assert_eq!(
            by_name(&found.service_entries),
            by_name(&wanted.service_entries)
        );
        assert_eq!(
            by_name(&found.virtual_services),
            by_name(&wanted.virtual_services)
        );
        assert_eq!(by_name(&found.sidecars), by_name(&wanted.sidecars));
    }
}
