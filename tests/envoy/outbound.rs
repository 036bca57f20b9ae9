//! Application to service, through Envoy.

use std::net::{IpAddr, SocketAddr};

use anyhow::ensure;
use sidecar_tests::{
    Envoy, Mode,
    apps::wire::canonical,
    envoy::{Access, Binds, Bootstrap},
    lab::Lab,
    require_envoy,
};

use crate::fixture::{SERVICES, app, envoy, lab, pod, request, serve_outside, started, visit};

const PORT: u16 = 9080;

/// Everything about one captured connection but who Envoy thinks the client is.
fn went_through(
    lab: &Lab,
    envoy: &Envoy,
    listener: &str,
    destination: SocketAddr,
) -> anyhow::Result<Access> {
    let line = envoy.access("the connection", |line| line.local == destination)?;
    ensure!(line.listener == listener, "{line:?}");
    ensure!(line.upstream == Some(destination), "{line:?}");
    ensure!(
        line.source()
            .is_some_and(|source| pod(lab).contains(&source)),
        "{line:?}"
    );
    Ok(line)
}

fn tcp(binds: Binds, address: &str) -> anyhow::Result<()> {
    let (mut lab, envoy) = started(Bootstrap::default().binds(binds))?;
    let destination = SocketAddr::new(address.parse()?, PORT);
    serve_outside(&mut lab, destination, Mode::Banner)?;
    let seen = visit(app(&lab), destination)?;
    ensure!(seen.name == "service", "{seen:?}");
    let line = went_through(&lab, &envoy, "virtualOutbound", destination)?;
    // What the service sees is Envoy's own connection.
    ensure!(seen.peer == line.upstream_local, "{seen:?} {line:?}");
    let stats = envoy.settled()?;
    assert_eq!(stats.taken("virtualOutbound"), 1);
    assert_eq!(stats.made("PassthroughCluster"), 1);
    assert_eq!(stats.all_taken(), 1);
    Ok(())
}

fn http(address: &str) -> anyhow::Result<()> {
    let (mut lab, envoy) = started(Bootstrap::default().http(PORT))?;
    let destination = SocketAddr::new(address.parse()?, PORT);
    serve_outside(&mut lab, destination, Mode::Http)?;
    let seen = request(app(&lab), destination, "/details/1")?;
    ensure!(seen.name == "service", "{seen:?}");
    // The listener that is not bound: reached by original destination only.
    let listener = match destination.ip() {
        IpAddr::V4(_) => "0.0.0.0_9080",
        IpAddr::V6(_) => "::_9080",
    };
    let line = went_through(&lab, &envoy, listener, destination)?;
    ensure!(
        line.path.as_deref() == Some("/details/1") && line.code == 200,
        "{line:?}"
    );
    let stats = envoy.settled()?;
    assert_eq!(stats.taken(listener), 1);
    assert_eq!(stats.made("PassthroughCluster"), 1);
    Ok(())
}

#[test]
fn tcp_by_ipv4() -> anyhow::Result<()> {
    require_envoy!();
    tcp(Binds::Wildcard, SERVICES[0])
}

#[test]
fn tcp_by_ipv6() -> anyhow::Result<()> {
    require_envoy!();
    tcp(Binds::Wildcard, SERVICES[1])
}

#[test]
fn tcp_by_ipv4_to_a_proxy_on_loopback_only() -> anyhow::Result<()> {
    require_envoy!();
    tcp(Binds::Loopback, SERVICES[0])
}

#[test]
fn tcp_by_ipv6_to_a_proxy_on_loopback_only() -> anyhow::Result<()> {
    require_envoy!();
    tcp(Binds::Loopback, SERVICES[1])
}

#[test]
fn http_by_ipv4() -> anyhow::Result<()> {
    require_envoy!();
    http(SERVICES[0])
}

#[test]
fn http_by_ipv6() -> anyhow::Result<()> {
    require_envoy!();
    http(SERVICES[1])
}

/// iptables' REDIRECT leaves the client's address as it is.
#[test]
fn envoy_sees_the_applications_own_address() -> anyhow::Result<()> {
    require_envoy!();
    let (mut lab, envoy) = started(Bootstrap::default())?;
    for (address, source) in SERVICES.into_iter().zip(pod(&lab)) {
        let destination = SocketAddr::new(address.parse()?, PORT);
        serve_outside(&mut lab, destination, Mode::Banner)?;
        visit(app(&lab), destination)?;
        let line = went_through(&lab, &envoy, "virtualOutbound", destination)?;
        ensure!(
            canonical(line.remote).ip() == source,
            "not from {source}: {line:?}"
        );
    }
    Ok(())
}

/// Without capture the same connection does not touch Envoy: it is not there by accident.
#[test]
fn without_the_agent_envoy_takes_nothing() -> anyhow::Result<()> {
    require_envoy!();
    let mut lab = lab()?;
    let envoy = envoy(&lab).start()?;
    let destination = SocketAddr::new(SERVICES[0].parse()?, PORT);
    serve_outside(&mut lab, destination, Mode::Banner)?;
    let seen = visit(app(&lab), destination)?;
    ensure!(seen.name == "service", "{seen:?}");
    assert_eq!(envoy.settled()?.all_taken(), 0);
    Ok(())
}
