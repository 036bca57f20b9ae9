//! Interception mode TPROXY: Envoy's sockets are transparent, which takes one capability.

use anyhow::{Context as _, ensure};
use sidecar_tests::{
    Envoy, Mode,
    envoy::{Bootstrap, PROXY_ID},
    require_envoy,
};

use crate::fixture::{
    PASSTHROUGH, SIDECAR, app, as_proxy, at, client, envoy, inbound_once, lab_with, pod, request,
    serve_app, serve_outside, service, visit,
};

/// Of capabilities(7), as a set.
const CAP_NET_ADMIN: u64 = 1 << 12;

const MODE: &str = "sidecar.istio.io/interceptionMode: TPROXY";

/// TCP and HTTP, in both families.
#[test]
fn inbound_arrives_with_client_and_destination_as_they_are() -> anyhow::Result<()> {
    require_envoy!();
    let mut lab = lab_with(&[MODE], SIDECAR)?;
    lab.start_agent()?;
    let bootstrap = Bootstrap::default().transparent().http(8081);
    let envoy = envoy(&lab).bootstrap(bootstrap).net_admin().start()?;
    serve_app(&mut lab, 8080, Mode::Banner)?;
    serve_app(&mut lab, 8081, Mode::Http)?;
    for (family, client) in client(&lab).into_iter().enumerate() {
        for port in [8080, 8081] {
            let destination = at(pod(&lab), port)[family];
            let seen = match port {
                8080 => visit(lab.outside(), destination)?,
                _ => request(lab.outside(), destination, "/")?,
            };
            ensure!(
                seen.peer.map(|peer| peer.ip()) == Some(PASSTHROUGH[family]),
                "{seen:?}"
            );
            let line = envoy.access("the connection", |line| line.local == destination)?;
            ensure!(line.listener == "virtualInbound", "{line:?}");
            ensure!(line.remote.ip() == client, "not from {client}: {line:?}");
        }
    }
    let stats = envoy.settled()?;
    assert_eq!(stats.taken("virtualInbound"), 4);
    assert_eq!(stats.all_taken(), 4);
    Ok(())
}

#[test]
fn outbound_works_as_without() -> anyhow::Result<()> {
    require_envoy!();
    let mut lab = lab_with(&[MODE], SIDECAR)?;
    lab.start_agent()?;
    let envoy = envoy(&lab)
        .bootstrap(Bootstrap::default().transparent())
        .net_admin()
        .start()?;
    serve_outside(&mut lab, 9080, Mode::Banner)?;
    for destination in service(9080) {
        let seen = visit(app(&lab), destination)?;
        ensure!(seen.name == "service", "{seen:?}");
        let line = envoy.access("the connection", |line| line.local == destination)?;
        ensure!(line.upstream == Some(destination), "{line:?}");
    }
    assert_eq!(envoy.settled()?.taken("virtualOutbound"), 2);
    Ok(())
}

/// As Istio has it in this mode: the application sees the client itself, and what it answers comes
/// back by way of Envoy. With user 1337, Envoy's connections would be led to itself, by
/// istio-iptables as well.
#[test]
fn inbound_is_passed_on_from_the_clients_address() -> anyhow::Result<()> {
    require_envoy!();
    let mut lab = lab_with(&[MODE], SIDECAR)?;
    lab.start_agent()?;
    let bootstrap = Bootstrap::default().transparent().original_src();
    let envoy = envoy(&lab).bootstrap(bootstrap).net_admin().as_root();
    let envoy = envoy.start()?;
    serve_app(&mut lab, 8080, Mode::Banner)?;
    for (to, client) in at(pod(&lab), 8080).into_iter().zip(client(&lab)) {
        let seen = visit(lab.outside(), to)?;
        ensure!(seen.name == "app", "{seen:?}");
        ensure!(seen.peer.map(|peer| peer.ip()) == Some(client), "{seen:?}");
        let line = envoy.access("the connection", |line| line.local == to)?;
        ensure!(line.source() == Some(client), "{line:?}");
    }
    let stats = envoy.settled()?;
    assert_eq!(stats.taken("virtualInbound"), 2);
    assert_eq!(stats.all_taken(), 2);
    Ok(())
}

/// As in the other mode. Known by its group only, as Istio's injector has it run as root in this one,
/// it is not led there: it calls the address, and is taken where it arrives.
#[test]
fn proxy_to_its_own_address() -> anyhow::Result<()> {
    require_envoy!();
    let mut lab = lab_with(&[MODE], SIDECAR)?;
    lab.start_agent()?;
    let envoy = envoy(&lab)
        .bootstrap(Bootstrap::default().transparent())
        .net_admin()
        .start()?;
    serve_app(&mut lab, 8080, Mode::Banner)?;
    let injected = lab.inside().user(0, PROXY_ID);
    for to in at(pod(&lab), 8080) {
        inbound_once(&envoy, as_proxy(&lab), to)?;
        inbound_once(&envoy, injected, to)?;
    }
    Ok(())
}

/// The Envoy of all other tests could not do this.
#[test]
fn it_takes_one_capability_and_otherwise_none() -> anyhow::Result<()> {
    require_envoy!();
    let lab = lab_with(&[MODE], SIDECAR)?;
    privileges(&envoy(&lab).start()?, 0)?;
    let refused = envoy(&lab)
        .bootstrap(Bootstrap::default().transparent())
        .start();
    let error = format!(
        "{:#}",
        refused
            .err()
            .unwrap_or_else(|| anyhow::anyhow!("it started"))
    );
    ensure!(error.contains("IP_TRANSPARENT"), "{error}");
    let envoy = envoy(&lab)
        .bootstrap(Bootstrap::default().transparent())
        .net_admin()
        .start()?;
    privileges(&envoy, CAP_NET_ADMIN)
}

/// Who Envoy is, and what it may do: now, and by any way the kernel has to more.
fn privileges(envoy: &Envoy, capabilities: u64) -> anyhow::Result<()> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", envoy.pid()?))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map(str::trim)
            .context("no such field")
            .context(name.to_owned())
    };
    for ids in ["Uid:", "Gid:"] {
        assert_eq!(field(ids)?, ["1337"; 4].join("\t"), "{ids}");
    }
    assert_eq!(field("Groups:")?, "");
    assert_eq!(field("NoNewPrivs:")?, "1");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        let found = u64::from_str_radix(field(set)?, 16)?;
        assert_eq!(found, capabilities, "{set}");
    }
    Ok(())
}
