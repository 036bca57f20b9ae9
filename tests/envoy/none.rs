//! Listeners with `captureMode: NONE` beside captured ones.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::ensure;
use ipnet::IpNet;
use sidecar_tests::{Mode, envoy::Bootstrap, lab, require_envoy};

use crate::fixture::{
    SERVICES, app, as_proxy, at, client, envoy, inbound_once, lab_with, pod, serve_app,
    serve_outside, service, visit,
};

const SIDECAR: &str = "\
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default, namespace: prod-us1}
spec:
  ingress:
  - port: {number: 9080, protocol: TCP, name: captured}
    defaultEndpoint: 127.0.0.1:9080
  - port: {number: 9443, protocol: TCP, name: real}
    captureMode: NONE
    defaultEndpoint: 127.0.0.1:9443
  egress:
  - port: {number: 3306, protocol: MYSQL, name: mysql}
    bind: 10.96.0.50
    captureMode: NONE
    hosts: ['*/*']
  - hosts: ['*/*']
";

/// Whoever really listens there gets the connection.
#[test]
fn an_inbound_one_is_not_captured() -> anyhow::Result<()> {
    require_envoy!();
    let mut lab = lab_with(&[], SIDECAR)?;
    lab.start_agent()?;
    let envoy = envoy(&lab).start()?;
    for port in [9080, 9443] {
        serve_app(&mut lab, port, Mode::Banner)?;
    }
    for (destination, client) in at(pod(&lab), 9443).into_iter().zip(client(&lab)) {
        let seen = visit(lab.outside(), destination)?;
        ensure!(seen.name == "app", "{seen:?}");
        ensure!(seen.peer.map(|peer| peer.ip()) == Some(client), "{seen:?}");
    }
    assert_eq!(envoy.settled()?.all_taken(), 0);
    for (taken, destination) in (1..).zip(at(pod(&lab), 9080)) {
        visit(lab.outside(), destination)?;
        let stats = envoy.settled()?;
        assert_eq!(stats.taken("virtualInbound"), taken);
        assert_eq!(stats.all_taken(), taken);
    }
    Ok(())
}

/// Envoy's real listener at its bind address gets the connection, not `virtualOutbound`.
#[test]
fn an_outbound_one_is_called_at_its_bind_address() -> anyhow::Result<()> {
    require_envoy!();
    let mut lab = lab_with(&[], SIDECAR)?;
    // Without a service at its port there is no listener.
    let mysql = lab::service("prod-us1", "mysql", SERVICES[0], 3306);
    lab.write("services.yaml", &mysql)?;
    lab.start_agent()?;
    serve_outside(&mut lab, 3306, Mode::Banner)?;
    // One that would be captured if it were not declared: the agent does not know it as local.
    let ip = Ipv4Addr::new(10, 96, 0, 50);
    let bind = SocketAddr::from((ip, 3306));
    let lo = IpNet::new(ip.into(), 32)?;
    lab.workload().netns.add_address("lo", lo)?;
    let mysql = service(3306)[0];
    let envoy = envoy(&lab)
        .bootstrap(Bootstrap::default().real(bind, mysql))
        .start()?;
    let seen = visit(app(&lab), bind)?;
    ensure!(seen.name == "service", "{seen:?}");
    let line = envoy.access("the connection", |line| line.local == bind)?;
    ensure!(line.upstream == Some(mysql), "{line:?}");
    // As the kernel itself connects to an own address: nobody has led it there.
    ensure!(line.remote.ip() == ip, "{line:?}");
    let stats = envoy.settled()?;
    assert_eq!(stats.taken("10.96.0.50_3306"), 1);
    assert_eq!(stats.taken("virtualOutbound"), 0);
    // Its neighbour, at another port, is captured.
    serve_outside(&mut lab, 9080, Mode::Banner)?;
    visit(app(&lab), service(9080)[0])?;
    let stats = envoy.settled()?;
    assert_eq!(stats.taken("10.96.0.50_3306"), 1);
    assert_eq!(stats.taken("virtualOutbound"), 1);
    Ok(())
}

/// Also where the proxy itself calls it, at an address that is the workload's own: its calls to
/// itself are led to `virtualInbound` otherwise.
#[test]
fn an_outbound_one_is_called_by_the_proxy_itself() -> anyhow::Result<()> {
    require_envoy!();
    let mut lab = lab_with(&[], SIDECAR)?;
    let ip = pod(&lab)[0];
    let bind = SocketAddr::new(ip, 3306);
    let sidecar = SIDECAR.replace("10.96.0.50", &ip.to_string());
    lab.write("sidecar.yaml", &sidecar)?;
    let mysql = lab::service("prod-us1", "mysql", SERVICES[0], 3306);
    lab.write("services.yaml", &mysql)?;
    lab.start_agent()?;
    serve_outside(&mut lab, 3306, Mode::Banner)?;
    let real = Bootstrap::default().real(bind, service(3306)[0]);
    let envoy = envoy(&lab).bootstrap(real).start()?;
    let name = format!("{ip}_3306");
    for (taken, caller) in (1..).zip([as_proxy(&lab), app(&lab)]) {
        let seen = visit(caller, bind)?;
        ensure!(seen.name == "service", "{seen:?}");
        let stats = envoy.settled()?;
        assert_eq!(stats.taken(&name), taken);
        assert_eq!(stats.all_taken(), taken);
    }
    // Its neighbour is none.
    serve_app(&mut lab, 8080, Mode::Banner)?;
    inbound_once(&envoy, as_proxy(&lab), (ip, 8080).into())
}
