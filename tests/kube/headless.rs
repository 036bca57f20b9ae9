//! Endpoints of headless services: `Endpoints` here, as the API server has no slices of version v1.

use anyhow::ensure;
use sidecar_tests::{kube::patiently, require_kube};

use crate::world::World;

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

#[test]
fn a_headless_service_is_reached_at_its_ready_endpoints() -> anyhow::Result<()> {
    require_kube!();
    let mut world = World::captured()?;
    let (a, b) = ("10.96.2.1", "10.96.2.2");
    let at = |ip: &str| format!("{ip}:9080");
    for ip in [a, b] {
        world.lab.serve(&at(ip), ip)?;
    }
    world.api.apply(SERVICE)?;
    for (ready, unready) in [(a, b), (b, a)] {
        world.api.apply(&endpoints(ready, unready))?;
        patiently("the ready endpoint to be reached", || {
            ensure!(world.reaches(&at(ready))?, "{ready} is not reached");
            ensure!(!world.reaches(&at(unready))?, "{unready} is reached");
            Ok(())
        })?;
    }
    Ok(())
}
