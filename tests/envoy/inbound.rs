//! Client outside to application, through Envoy.

use std::net::IpAddr;

use anyhow::ensure;
use sidecar_tests::{
    Mode,
    apps::Seen,
    envoy::{Access, Binds, Bootstrap},
    require_envoy,
};

use crate::fixture::{PASSTHROUGH, at, client, pod, request, serve_app, started, visit};

const PORT: u16 = 8080;

const CLUSTERS: [&str; 2] = [
    "InboundPassthroughClusterIpv4",
    "InboundPassthroughClusterIpv6",
];

/// How many connections each test makes, to be counted.
const VISITS: u64 = 3;

/// The client's address as Envoy sees it, the passthrough's as the application sees it.
fn addresses(line: &Access, seen: &Seen, client: IpAddr, family: usize) -> anyhow::Result<()> {
    ensure!(line.listener == "virtualInbound", "{line:?}");
    ensure!(line.remote.ip() == client, "not from {client}: {line:?}");
    ensure!(line.upstream == Some(line.local), "{line:?}");
    ensure!(line.source() == Some(PASSTHROUGH[family]), "{line:?}");
    ensure!(seen.name == "app", "{seen:?}");
    ensure!(
        seen.peer.map(|peer| peer.ip()) == Some(PASSTHROUGH[family]),
        "{seen:?}"
    );
    // Also the application's own socket has the address that the client called.
    ensure!(seen.local == Some(line.local), "{seen:?}");
    Ok(())
}

fn tcp(binds: Binds, family: usize) -> anyhow::Result<()> {
    let (mut lab, envoy) = started(Bootstrap::default().binds(binds))?;
    serve_app(&mut lab, PORT, Mode::Banner)?;
    let destination = at(pod(&lab), PORT)[family];
    for _ in 0..VISITS {
        let seen = visit(lab.outside(), destination)?;
        let line = envoy.access("the connection", |line| {
            line.upstream_local == seen.peer && line.local == destination
        })?;
        addresses(&line, &seen, client(&lab)[family], family)?;
    }
    let stats = envoy.settled()?;
    // Its own connection to the application is not captured again.
    assert_eq!(stats.taken("virtualInbound"), VISITS);
    assert_eq!(stats.all_taken(), VISITS);
    assert_eq!(stats.made(CLUSTERS[family]), VISITS);
    Ok(())
}

fn http(family: usize) -> anyhow::Result<()> {
    let (mut lab, envoy) = started(Bootstrap::default().http(PORT))?;
    serve_app(&mut lab, PORT, Mode::Http)?;
    let destination = at(pod(&lab), PORT)[family];
    let seen = request(lab.outside(), destination, "/productpage")?;
    let line = envoy.access("the request", |line| line.local == destination)?;
    addresses(&line, &seen, client(&lab)[family], family)?;
    let path = line.path.as_deref();
    ensure!(path == Some("/productpage") && line.code == 200, "{line:?}");
    let stats = envoy.settled()?;
    assert_eq!(stats.all_taken(), 1);
    assert_eq!(stats.made(CLUSTERS[family]), 1);
    Ok(())
}

#[test]
fn tcp_by_ipv4() -> anyhow::Result<()> {
    require_envoy!();
    tcp(Binds::Wildcard, 0)
}

#[test]
fn tcp_by_ipv6() -> anyhow::Result<()> {
    require_envoy!();
    tcp(Binds::Wildcard, 1)
}

#[test]
fn tcp_by_ipv4_to_a_proxy_on_loopback_only() -> anyhow::Result<()> {
    require_envoy!();
    tcp(Binds::Loopback, 0)
}

#[test]
fn tcp_by_ipv6_to_a_proxy_on_loopback_only() -> anyhow::Result<()> {
    require_envoy!();
    tcp(Binds::Loopback, 1)
}

#[test]
fn http_by_ipv4() -> anyhow::Result<()> {
    require_envoy!();
    http(0)
}

#[test]
fn http_by_ipv6() -> anyhow::Result<()> {
    require_envoy!();
    http(1)
}
