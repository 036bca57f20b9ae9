//! What the kernel was told of a workload's network and sockets, when nobody keeps it up to date.

use aya::maps::{Map, MapData, SockHash};
use sidecar_common::keys::WorkloadEndpoint;
use sidecar_tests::{lab::Lab, require_root};

use super::{agrees, differs};

const SIDECAR: &str = "\
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default, namespace: prod-us1}
spec:
  ingress:
  - port: {number: 9080, protocol: TCP, name: http}
    defaultEndpoint: 127.0.0.1:8080
";

/// A lab without an agent, whose workload was captured, excludes interfaces and listens.
fn left_alone() -> anyhow::Result<Lab> {
    let mut lab = Lab::new()?;
    lab.write("sidecar.yaml", SIDECAR)?;
    lab.write_mesh("{}\n")?;
    lab.write_workload(&["traffic.sidecar.istio.io/excludeInterfaces: net+"])?;
    lab.serve_inside("127.0.0.1:8080", "app")?;
    lab.start_agent()?;
    agrees(&lab, &[&inbound(&lab)], "direct", "ingress-listener")?;
    lab.agent_mut()?.stop()?;
    Ok(lab)
}

fn inbound(lab: &Lab) -> String {
    format!("inbound:{}:9080", lab.workload().v4)
}

#[test]
fn addresses_interfaces_and_routes_that_came_are_missed() -> anyhow::Result<()> {
    require_root!();
    let lab = left_alone()?;
    let netns = &lab.workload().netns;
    netns.ip("link add net7 type veth peer name peer7")?;
    let destination = inbound(&lab);
    differs(
        &lab,
        &destination,
        "INTERFACES net7: missing, has to be excluded",
    )?;
    netns.ip("link set net7 up")?;
    netns.ip("address add 198.51.100.1/32 dev net7")?;
    differs(&lab, &destination, "LOCAL_ADDRS 198.51.100.1: missing")?;
    netns.ip("route add 198.51.100.0/24 dev net7")?;
    differs(&lab, &destination, "ROUTES 198.51.100.0/24: missing")?;
    netns.ip("link delete net7")?;
    agrees(&lab, &[&destination], "direct", "ingress-listener")?;
    Ok(())
}

#[test]
fn a_listener_that_is_not_known_is_missed() -> anyhow::Result<()> {
    require_root!();
    let lab = left_alone()?;
    let destination = inbound(&lab);
    let pin = lab.agent()?.bpffs().join("sidecar-agent/set-1/SOCKETS");
    let mut sockets: SockHash<MapData, WorkloadEndpoint> =
        Map::SockHash(MapData::from_pin(pin)?).try_into()?;
    let known: Vec<_> = sockets.keys().flatten().collect();
    for key in known.iter().filter(|key| key.endpoint.port == 8080) {
        sockets.remove(key)?;
    }
    differs(
        &lab,
        &destination,
        "SOCKETS 127.0.0.1:8080: missing, but it listens",
    )?;
    Ok(())
}
