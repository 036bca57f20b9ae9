//! What the tests begin with.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, ensure};
use sidecar_tests::{
    Client, Envoy, Mode, Place, Server,
    apps::{Outcome, Seen, wire::canonical},
    envoy::{Bootstrap, EnvoyBuilder, PROXY_ID},
    lab::Lab,
};

/// The user that applications run as.
pub const APP: u32 = 1000;

/// A service that the services' host answers for, in both families.
pub const SERVICES: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 1)),
];

/// Where inbound passthrough comes from, in both families.
pub const PASSTHROUGH: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6)),
    IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6)),
];

/// Everything is captured, and every service is visible.
pub const SIDECAR: &str = "\
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default, namespace: prod-us1}
spec:
  egress:
  - hosts: ['*/*']
";

/// A lab whose workload has an external proxy once an agent runs; neither does yet.
pub fn lab() -> anyhow::Result<Lab> {
    lab_with(&[], SIDECAR)
}

/// The same with further annotations and another Sidecar.
pub fn lab_with(annotations: &[&str], sidecar: &str) -> anyhow::Result<Lab> {
    let lab = Lab::new()?;
    lab.announce("10.96.0.0/16")?;
    lab.announce("fd96::/64")?;
    let proxy = "capture.sidecar-agent.io/proxy: external";
    // The workload's first address is IPv4.
    let both = "capture.sidecar-agent.io/dual-stack: 'true'";
    let annotations: Vec<&str> = annotations.iter().copied().chain([proxy, both]).collect();
    lab.write("sidecar.yaml", sidecar)?;
    lab.write_workload(&annotations)?;
    lab.write_mesh("{}\n")?;
    Ok(lab)
}

/// An Envoy for the lab's workload.
pub fn envoy(lab: &Lab) -> EnvoyBuilder<'_> {
    Envoy::at(&lab.workload().netns, lab.inside())
}

/// A lab with agent and Envoy.
pub fn started(bootstrap: Bootstrap) -> anyhow::Result<(Lab, Envoy)> {
    let mut lab = lab()?;
    lab.start_agent()?;
    let envoy = envoy(&lab).bootstrap(bootstrap).start()?;
    Ok((lab, envoy))
}

/// Where an application of the workload runs.
pub fn app(lab: &Lab) -> Place<'_> {
    lab.inside().user(APP, APP)
}

/// Somebody with the proxy's user, where the proxy is.
pub fn as_proxy(lab: &Lab) -> Place<'_> {
    lab.inside().user(PROXY_ID, PROXY_ID)
}

/// Starts an application in the workload, at this port of all its addresses.
pub fn serve_app(lab: &mut Lab, port: u16, mode: Mode) -> anyhow::Result<()> {
    serve_app_at(lab, (Ipv6Addr::UNSPECIFIED, port).into(), mode)
}

/// Starts an application in the workload.
pub fn serve_app_at(lab: &mut Lab, address: SocketAddr, mode: Mode) -> anyhow::Result<()> {
    let server = Server::tcp(address)
        .place(app(lab))
        .mode(mode)
        .name("app")
        .start()?;
    lab.keep(server);
    Ok(())
}

/// Starts a service outside, at this port of all [`SERVICES`].
pub fn serve_outside(lab: &mut Lab, port: u16, mode: Mode) -> anyhow::Result<()> {
    let server = Server::tcp((Ipv6Addr::UNSPECIFIED, port).into())
        .place(Place::here().netns(&lab.services().netns))
        .mode(mode)
        .name("service")
        .start()?;
    lab.keep(server);
    Ok(())
}

/// The addresses of a service's port, in both families.
pub fn service(port: u16) -> [SocketAddr; 2] {
    at(SERVICES, port)
}

/// A port of some addresses.
pub fn at<const N: usize>(addresses: [IpAddr; N], port: u16) -> [SocketAddr; N] {
    addresses.map(|address| SocketAddr::new(address, port))
}

/// The addresses of the workload, in both families.
pub fn pod(lab: &Lab) -> [IpAddr; 2] {
    [lab.workload().v4.into(), lab.workload().v6.into()]
}

/// The same of the host outside.
pub fn client(lab: &Lab) -> [IpAddr; 2] {
    [lab.client().v4.into(), lab.client().v6.into()]
}

/// Reads a banner, which must come.
pub fn visit(place: Place<'_>, address: SocketAddr) -> anyhow::Result<Seen> {
    seen(&Client::tcp(address).place(place).banner()?, address)
}

/// Makes an HTTP request, which must be answered by Envoy with what the server saw.
pub fn request(place: Place<'_>, address: SocketAddr, path: &str) -> anyhow::Result<Seen> {
    let outcome = Client::http(address, path).place(place).request()?;
    let answer = outcome
        .http
        .clone()
        .with_context(|| format!("{address}: {outcome:?}"))?;
    ensure!(answer.status == 200, "{address}: {outcome:?}");
    ensure!(
        answer.path.as_deref() == Some(path),
        "{address}: {outcome:?}"
    );
    ensure!(
        answer.server.as_deref() == Some("envoy"),
        "{address}: {outcome:?}"
    );
    seen(&outcome, address)
}

/// Reaches the application through `virtualInbound`, once.
pub fn inbound_once(envoy: &Envoy, place: Place<'_>, to: SocketAddr) -> anyhow::Result<()> {
    let before = envoy.settled()?;
    let seen = visit(place, to)?;
    ensure!(seen.name == "app", "{to}: {seen:?}");
    let after = envoy.settled()?;
    let taken = after.all_taken() - before.all_taken();
    let inbound = after.taken("virtualInbound") - before.taken("virtualInbound");
    ensure!(
        (inbound, taken) == (1, 1),
        "{to}: virtualInbound took {inbound}, Envoy {taken} in all; {seen:?}"
    );
    let source = seen.peer.map(|peer| peer.ip());
    ensure!(
        source.is_some_and(|ip| PASSTHROUGH.contains(&ip)),
        "{to}: {seen:?}"
    );
    Ok(())
}

fn seen(outcome: &Outcome, address: SocketAddr) -> anyhow::Result<Seen> {
    let mut seen = outcome
        .banner
        .clone()
        .with_context(|| format!("{address}: {outcome:?}"))?;
    seen.peer = seen.peer.map(canonical);
    seen.local = seen.local.map(canonical);
    Ok(seen)
}
