//! Endpoints of headless services: `Endpoints` of an API server that has no slices of version v1, and
//! slices of one that has.

use anyhow::ensure;
use sidecar_tests::{
    kube::{ApiServer, patiently},
    require_kube,
};

use crate::world::World;

/// Two addresses of the service, of which one is ready.
const A: &str = "10.96.2.1";
const B: &str = "10.96.2.2";

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: db, namespace: prod-us1}
spec:
  clusterIP: None
  ports: [{name: tcp, port: 9080}]
";

fn endpoints(ready: &str, unready: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Endpoints\n\
         metadata: {{name: db, namespace: prod-us1, labels: {{service.kubernetes.io/headless: ''}}}}\n\
         subsets:\n\
         - addresses: [{{ip: {ready}}}]\n  notReadyAddresses: [{{ip: {unready}}}]\n  \
           ports: [{{name: tcp, port: 9080}}]\n"
    )
}

/// With labels as Kubernetes sets them, or as others may.
fn slice(ready: &str, unready: &str, labels: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata:\n  name: db-1\n  namespace: prod-us1\n  \
           labels: {{kubernetes.io/service-name: db, {labels}}}\n\
         addressType: IPv4\n\
         endpoints:\n\
         - {{addresses: [{ready}], conditions: {{ready: true}}}}\n\
         - {{addresses: [{unready}], conditions: {{ready: false}}}}\n\
         ports: [{{name: tcp, port: 9080}}]\n"
    )
}

fn at(ip: &str) -> String {
    format!("{ip}:9080")
}

fn serve(world: &mut World) -> anyhow::Result<()> {
    for ip in [A, B] {
        world.lab.serve(&at(ip), ip)?;
    }
    world.api.apply(SERVICE)?;
    Ok(())
}

fn is_reached(world: &World, ready: &str, unready: &str) -> anyhow::Result<()> {
    patiently("the ready endpoint to be reached", || {
        ensure!(world.reaches(&at(ready))?, "{ready} is not reached");
        ensure!(!world.reaches(&at(unready))?, "{unready} is reached");
        Ok(())
    })
}

#[test]
fn a_headless_service_is_reached_at_its_ready_endpoints() -> anyhow::Result<()> {
    require_kube!();
    let mut world = World::captured()?;
    let cluster = world.cluster()?.to_string();
    if cluster.contains("endpointslices") {
        sidecar_tests::skip!("an API server without EndpointSlices of version v1");
    }
    serve(&mut world)?;
    for (ready, unready) in [(A, B), (B, A)] {
        world.api.apply(&endpoints(ready, unready))?;
        is_reached(&world, ready, unready)?;
    }
    Ok(())
}

#[test]
fn slices_are_read_whoever_makes_them() -> anyhow::Result<()> {
    require_kube!();
    let api = ApiServer::start()?;
    api.add_slices()?;
    let mut world = World::captured_in(api)?;
    serve(&mut world)?;
    let by = "endpointslice.kubernetes.io/managed-by";
    let kubernetes =
        format!("service.kubernetes.io/headless: '', {by}: endpointslice-controller.k8s.io");
    let another = format!("{by}: somebody");
    for (ready, unready, labels) in [
        (A, B, &kubernetes),
        (B, A, &kubernetes),
        (A, B, &another),
        (B, A, &another),
    ] {
        world.api.apply(&slice(ready, unready, labels))?;
        is_reached(&world, ready, unready)?;
    }
    world.api.kubectl(&[
        "delete",
        "endpointslices.v1.discovery.k8s.io",
        "--namespace=prod-us1",
        "db-1",
    ])?;
    patiently("the last endpoint not to be reached", || {
        ensure!(!world.reaches(&at(B))?, "it is reached");
        Ok(())
    })
}
