//! Application to service, through Envoy.

use std::net::SocketAddr;

use anyhow::ensure;
use sidecar_tests::{
    Envoy, Mode,
    envoy::{Access, Binds, Bootstrap},
    lab::Lab,
    require_envoy,
};

use crate::fixture::{app, envoy, lab, pod, request, serve_outside, service, started, visit};

const PORT: u16 = 9080;

/// Which of two addresses: that of IPv4 or that of IPv6.
const V4: usize = 0;
const V6: usize = 1;

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
    let source = line.source();
    ensure!(
        source.is_some_and(|source| pod(lab).contains(&source)),
        "{line:?}"
    );
    Ok(line)
}

fn tcp(binds: Binds, family: usize) -> anyhow::Result<()> {
    let (mut lab, envoy) = started(Bootstrap::default().binds(binds))?;
    let destination = service(PORT)[family];
    serve_outside(&mut lab, PORT, Mode::Banner)?;
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

fn http(family: usize, listener: &str) -> anyhow::Result<()> {
    let (mut lab, envoy) = started(Bootstrap::default().http(PORT))?;
    let destination = service(PORT)[family];
    serve_outside(&mut lab, PORT, Mode::Http)?;
    let seen = request(app(&lab), destination, "/details/1")?;
    ensure!(seen.name == "service", "{seen:?}");
    // The listener that is not bound: it is reached by original destination only.
    let line = went_through(&lab, &envoy, listener, destination)?;
    let path = line.path.as_deref();
    ensure!(path == Some("/details/1") && line.code == 200, "{line:?}");
    let stats = envoy.settled()?;
    assert_eq!(stats.taken("virtualOutbound"), 0, "handed on");
    assert_eq!(stats.made("PassthroughCluster"), 1);
    assert_eq!(stats.all_taken(), 1);
    Ok(())
}

#[test]
fn tcp_by_ipv4() -> anyhow::Result<()> {
    require_envoy!();
    tcp(Binds::Wildcard, V4)
}

#[test]
fn tcp_by_ipv6() -> anyhow::Result<()> {
    require_envoy!();
    tcp(Binds::Wildcard, V6)
}

#[test]
fn tcp_by_ipv4_to_a_proxy_on_loopback_only() -> anyhow::Result<()> {
    require_envoy!();
    tcp(Binds::Loopback, V4)
}

#[test]
fn tcp_by_ipv6_to_a_proxy_on_loopback_only() -> anyhow::Result<()> {
    require_envoy!();
    tcp(Binds::Loopback, V6)
}

#[test]
fn http_by_ipv4() -> anyhow::Result<()> {
    require_envoy!();
    http(V4, "0.0.0.0_9080")
}

#[test]
fn http_by_ipv6() -> anyhow::Result<()> {
    require_envoy!();
    http(V6, "::_9080")
}

/// iptables' REDIRECT leaves the client's address as it is.
#[test]
fn envoy_sees_the_applications_own_address() -> anyhow::Result<()> {
    require_envoy!();
    let (mut lab, envoy) = started(Bootstrap::default())?;
    serve_outside(&mut lab, PORT, Mode::Banner)?;
    for (destination, source) in service(PORT).into_iter().zip(pod(&lab)) {
        visit(app(&lab), destination)?;
        let line = went_through(&lab, &envoy, "virtualOutbound", destination)?;
        ensure!(line.remote.ip() == source, "not from {source}: {line:?}");
    }
    Ok(())
}

/// That connections reach Envoy is the agent's doing.
#[test]
fn without_the_agent_envoy_takes_nothing() -> anyhow::Result<()> {
    require_envoy!();
    let mut lab = lab()?;
    let envoy = envoy(&lab).start()?;
    serve_outside(&mut lab, PORT, Mode::Banner)?;
    let seen = visit(app(&lab), service(PORT)[V4])?;
    ensure!(seen.name == "service", "{seen:?}");
    assert_eq!(envoy.settled()?.all_taken(), 0);
    Ok(())
}
