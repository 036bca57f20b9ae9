//! The workload calls itself, and others call the proxy: nothing goes round in circles.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::ensure;
use rustix::io::Errno;
use sidecar_tests::{
    Client, Envoy, Mode, Place,
    envoy::{Bootstrap, INBOUND_PORT, OUTBOUND_PORT},
    lab::Lab,
    require_envoy,
};

use crate::fixture::{
    PASSTHROUGH, app, as_proxy, at, client, envoy, inbound_once, lab, pod, serve_app, serve_app_at,
    started, visit,
};

const PORT: u16 = 8080;

/// More connections of Envoy's than this for one of a client's are a loop.
const HANDFUL: u64 = 3;

/// A connection that leads nowhere ends within this, on a busy machine.
const PROMPT: Duration = Duration::from_secs(5);

fn with_app() -> anyhow::Result<(Lab, Envoy)> {
    let (mut lab, envoy) = started(Bootstrap::default())?;
    serve_app(&mut lab, PORT, Mode::Banner)?;
    Ok((lab, envoy))
}

/// Reaches the application without Envoy.
fn passes(lab: &Lab, envoy: &Envoy, place: Place<'_>, to: SocketAddr) -> anyhow::Result<()> {
    let before = envoy.settled()?.all_taken();
    let seen = visit(place, to)?;
    ensure!(
        seen.name == "app" && seen.local == Some(to),
        "{to}: {seen:?}"
    );
    let source = seen.peer.map(|peer| peer.ip());
    ensure!(
        source.is_some_and(|ip| ip.is_loopback() || pod(lab).contains(&ip)),
        "{to}: {seen:?}"
    );
    let taken = envoy.settled()?.all_taken() - before;
    ensure!(taken == 0, "{to}: Envoy took {taken}");
    Ok(())
}

/// Ends soon, without an answer, and without more than a handful of connections.
fn ends(envoy: &Envoy, place: Place<'_>, to: SocketAddr) -> anyhow::Result<()> {
    let before = envoy.settled()?.all_taken();
    let started = Instant::now();
    let outcome = Client::tcp(to).place(place).banner()?;
    let took = started.elapsed();
    ensure!(outcome.banner.is_none(), "{to}: {outcome:?}");
    ensure!(took < PROMPT, "{to}: took {took:?}, {outcome:?}");
    let taken = envoy.settled()?.all_taken() - before;
    ensure!(taken <= HANDFUL, "{to}: Envoy took {taken}; {outcome:?}");
    Ok(())
}

#[test]
fn application_to_its_own_address() -> anyhow::Result<()> {
    require_envoy!();
    let (lab, envoy) = with_app()?;
    at(pod(&lab), PORT)
        .into_iter()
        .try_for_each(|to| passes(&lab, &envoy, app(&lab), to))
}

#[test]
fn application_to_loopback() -> anyhow::Result<()> {
    require_envoy!();
    let (lab, envoy) = with_app()?;
    let loopback: [IpAddr; 3] = [
        Ipv4Addr::LOCALHOST.into(),
        Ipv4Addr::new(127, 0, 0, 2).into(),
        Ipv6Addr::LOCALHOST.into(),
    ];
    at(loopback, PORT)
        .into_iter()
        .try_for_each(|to| passes(&lab, &envoy, app(&lab), to))
}

/// To a service that the workload itself is the endpoint of: out, and in again.
#[test]
fn application_to_its_own_service() -> anyhow::Result<()> {
    require_envoy!();
    let mut lab = lab()?;
    let virtual_ips: [SocketAddr; 2] = ["10.96.0.9:80".parse()?, "[fd96::9]:80".parse()?];
    let services = virtual_ips.into_iter().zip(at(pod(&lab), PORT));
    let services: Vec<_> = services.collect();
    let bootstrap = services
        .iter()
        .fold(Bootstrap::default(), |made, (service, endpoint)| {
            made.service(*service, *endpoint)
        });
    lab.start_agent()?;
    let envoy = envoy(&lab).bootstrap(bootstrap).start()?;
    serve_app(&mut lab, PORT, Mode::Banner)?;
    for (family, (service, endpoint)) in services.into_iter().enumerate() {
        let before = envoy.settled()?;
        let seen = visit(app(&lab), service)?;
        ensure!(
            seen.name == "app" && seen.local == Some(endpoint),
            "{seen:?}"
        );
        let out = envoy.access("the way out", |line| line.local == service)?;
        ensure!(out.upstream == Some(endpoint), "{out:?}");
        let after = envoy.settled()?;
        let inbound = after.taken("virtualInbound") - before.taken("virtualInbound");
        let taken = after.all_taken() - before.all_taken();
        ensure!(
            (inbound, taken) == (1, 2),
            "{service}: virtualInbound took {inbound}, Envoy {taken} in all; {seen:?}"
        );
        ensure!(
            seen.peer.map(|peer| peer.ip()) == Some(PASSTHROUGH[family]),
            "{seen:?}"
        );
    }
    Ok(())
}

/// Istio's rules lead the proxy's call to the workload's own address to `virtualInbound`.
#[test]
fn proxy_to_its_own_address() -> anyhow::Result<()> {
    require_envoy!();
    let (lab, envoy) = with_app()?;
    at(pod(&lab), PORT)
        .into_iter()
        .try_for_each(|to| inbound_once(&envoy, as_proxy(&lab), to))
}

/// The same for all of 127/8 but 127.0.0.1 itself.
#[test]
fn proxy_to_another_loopback_address() -> anyhow::Result<()> {
    require_envoy!();
    let (lab, envoy) = with_app()?;
    inbound_once(
        &envoy,
        as_proxy(&lab),
        (Ipv4Addr::new(127, 0, 0, 2), PORT).into(),
    )
}

#[test]
fn proxy_to_loopback() -> anyhow::Result<()> {
    require_envoy!();
    let (lab, envoy) = with_app()?;
    let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    at(loopback, PORT)
        .into_iter()
        .try_for_each(|to| passes(&lab, &envoy, as_proxy(&lab), to))
}

/// Nobody leads these connections there: they have no original destination but the proxy itself.
fn calls_to_the_capture_ports(bootstrap: Bootstrap) -> anyhow::Result<()> {
    let (lab, envoy) = started(bootstrap)?;
    let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    for port in [OUTBOUND_PORT, INBOUND_PORT] {
        for to in at(pod(&lab), port) {
            ends(&envoy, lab.outside(), to)?;
            // Somebody else's is captured like any other, and passed on, unless the guard ends it.
            let client = client(&lab);
            let line = envoy.access("the connection", |line| {
                line.local == to && client.contains(&line.remote.ip())
            })?;
            ensure!(
                line.listener == "blackhole" || line.upstream == Some(to),
                "{line:?}"
            );
        }
        for to in at(pod(&lab), port).into_iter().chain(at(loopback, port)) {
            ends(&envoy, app(&lab), to)?;
            ends(&envoy, as_proxy(&lab), to)?;
        }
    }
    ensure!(
        envoy.settled()?.all_taken() > 0,
        "none of them reached Envoy"
    );
    Ok(())
}

#[test]
fn calls_to_the_capture_ports_end() -> anyhow::Result<()> {
    require_envoy!();
    calls_to_the_capture_ports(Bootstrap::default())
}

/// Also when Envoy itself has no guard against it.
#[test]
fn calls_to_the_capture_ports_end_without_istios_guard() -> anyhow::Result<()> {
    require_envoy!();
    calls_to_the_capture_ports(Bootstrap::default().no_blackhole())
}

#[test]
fn undeclared_port_without_application() -> anyhow::Result<()> {
    require_envoy!();
    let (lab, envoy) = started(Bootstrap::default())?;
    for (taken, to) in (1..).zip(at(pod(&lab), 7777)) {
        ends(&envoy, lab.outside(), to)?;
        let line = envoy.access("the connection", |line| line.local == to)?;
        ensure!(line.flags.contains("UF"), "no upstream failure: {line:?}");
        assert_eq!(envoy.settled()?.all_taken(), taken);
    }
    // From inside it is not Envoy's business.
    for to in at(pod(&lab), 7777) {
        let outcome = Client::tcp(to).place(app(&lab)).connect()?;
        ensure!(
            outcome.errno == Some(Errno::CONNREFUSED.raw_os_error()),
            "{outcome:?}"
        );
    }
    assert_eq!(envoy.settled()?.all_taken(), 2);
    Ok(())
}

/// An application that does not listen on loopback is reached all the same.
#[test]
fn application_on_the_workloads_address_only() -> anyhow::Result<()> {
    require_envoy!();
    let (mut lab, envoy) = started(Bootstrap::default())?;
    for (family, to) in at(pod(&lab), PORT).into_iter().enumerate() {
        serve_app_at(&mut lab, to, Mode::Banner)?;
        inbound_once(&envoy, lab.outside(), to)?;
        passes(&lab, &envoy, app(&lab), to)?;
        let line = envoy.access("the connection", |line| line.local == to)?;
        ensure!(line.source() == Some(PASSTHROUGH[family]), "{line:?}");
    }
    Ok(())
}
