//! Inbound, while the proxy is not there.

use std::{net::TcpStream, time::Duration};

use sidecar_common::{
    Reason,
    values::{Interface, PlanHeader},
};
use sidecar_tests::{Place, Probe, Server, require_root};

use super::{answered, refused};
use crate::{
    fixture::{Fixture, serve},
    interfaces::Guest,
    plan::{PROXY_UID, Planner, at, direct, exempting_self, proxy},
};

/// Addresses at which the workload is called.
const CALLED: [&str; 2] = ["10.3.0.1:8080", "[fd00:3::1]:8080"];

fn plan() -> Planner {
    Planner::new().proxied().inbound_default(proxy())
}

fn open() -> Planner {
    plan().flags(PlanHeader::OPEN_PROXY_GONE)
}

fn arrives(fixture: &Fixture, name: Option<&str>) -> anyhow::Result<()> {
    let client = fixture.stranger()?;
    match name {
        Some(name) => answered(&client, &CALLED, name),
        None => refused(&client, &CALLED),
    }
}

#[test]
fn closed_it_is_reset_until_the_proxy_is_there() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::new(plan())?;
    let _app = serve(fixture.inside(), "[::]:8080", "app")?;
    for _ in 0..2 {
        arrives(&fixture, None)?;
        let _proxy = serve(fixture.as_proxy(), "[::]:15006", "proxy")?;
        arrives(&fixture, Some("proxy"))?;
    }
    assert_eq!(fixture.inbound(Reason::TargetNotListening)?, 4);
    assert_eq!(fixture.inbound(Reason::ProxyGone)?, 0);
    Ok(())
}

#[test]
fn open_it_gets_to_the_application_until_the_proxy_is_there() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::new(open())?;
    let _app = serve(fixture.inside(), "[::]:8080", "app")?;
    for _ in 0..2 {
        arrives(&fixture, Some("app"))?;
        let _proxy = serve(fixture.as_proxy(), "[::]:15006", "proxy")?;
        arrives(&fixture, Some("proxy"))?;
    }
    assert_eq!(fixture.inbound(Reason::ProxyGone)?, 4);
    assert_eq!(fixture.inbound(Reason::CaptureAll)?, 4);
    assert_eq!(fixture.inbound(Reason::TargetNotListening)?, 0);
    Ok(())
}

/// It keeps its destination, and is the inbound listener's where it arrives.
#[test]
fn a_transparent_proxys_call_to_its_own_workload() -> anyhow::Result<()> {
    require_root!();
    for (plan, is_open) in [(open(), true), (plan(), false)] {
        let plan = plan
            .flags(PlanHeader::TPROXY)
            .outbound_default(proxy())
            .inbound_default(exempting_self(proxy()));
        let fixture = Fixture::of_pod(plan)?;
        let _app = serve(fixture.inside(), "[::]:8080", "app")?;
        let injected = Probe::start(fixture.inside().user(0, PROXY_UID))?;
        let called = ["10.244.1.5:8080", "[fd00:244::5]:8080"];
        if is_open {
            answered(&injected, &called, "app")?;
        } else {
            refused(&injected, &called)?;
        }
        let _proxy = serve(fixture.as_proxy(), "[::]:15006", "proxy")?;
        answered(&injected, &called, "proxy")?;
    }
    Ok(())
}

/// The policy is about the proxy: an application that is gone is gone.
#[test]
fn open_an_applications_socket_is_not_meant() -> anyhow::Result<()> {
    require_root!();
    let plan = open()
        .inbound("0.0.0.0:8080", direct("127.0.0.1:9090"))
        .inbound("[::]:8080", direct("[::1]:9090"))
        .listens(9090);
    let fixture = Fixture::new(plan)?;
    let _other = serve(fixture.inside(), "[::]:8080", "other")?;
    arrives(&fixture, None)?;
    assert_eq!(fixture.inbound(Reason::TargetNotListening)?, 2);
    Ok(())
}

/// The map has one socket of several that share a port. When that one closes, another is looked for
/// because connections have missed it, although a listener is known for each port.
#[test]
fn open_another_worker_is_found_again() -> anyhow::Result<()> {
    require_root!();
    let mut fixture = Fixture::new(open())?;
    let _app = serve(fixture.inside(), "[::]:8080", "app")?;
    let _others = [
        serve(fixture.as_proxy(), "[::]:15001", "other")?,
        serve(fixture.as_proxy(), "[::1]:15006", "other")?,
    ];
    let worker = |fixture: &Fixture| {
        Server::tcp(at("0.0.0.0:15006"))
            .place(fixture.inside().user(PROXY_UID, PROXY_UID))
            .reuse_port()
            .name("proxy")
            .start()
    };
    let _first = worker(&fixture)?;
    let second = worker(&fixture)?;
    let (client, called) = (fixture.stranger()?, &CALLED[..1]);
    answered(&client, called, "proxy")?;
    fixture.loaded.dataplane.refresh();
    drop(second);
    answered(&client, called, "app")?;
    fixture.loaded.dataplane.refresh();
    answered(&client, called, "proxy")
}

/// It was going elsewhere; the workload's own listener on that port is not meant.
#[test]
fn open_what_arrives_by_a_virtual_interface_is_refused_all_the_same() -> anyhow::Result<()> {
    require_root!();
    let mut fixture = Fixture::without_plan()?;
    let guest = Guest::behind(&fixture, "vm1", 1)?;
    let _app = serve(fixture.inside(), "[::]:80", "app")?;
    fixture.follow(
        open()
            .interface("vm1", Interface::VIRTUAL)
            .flags(PlanHeader::VIRTUAL_ALL),
    )?;
    let proxy = serve(fixture.as_proxy(), "[::]:15001", "proxy")?;
    fixture.loaded.dataplane.refresh();
    guest.is_captured()?;
    drop(proxy);
    let client = Probe::start(Place::here().netns(&guest.netns))?;
    refused(&client, &["[2001:db8:ffff::1]:80"])?;
    assert_eq!(fixture.inbound(Reason::TargetNotListening)?, 1);
    // The kernel does not reset an IPv4 connection from an address that is not its own: the caller
    // has to wait. Not for the application to answer.
    let waited = Duration::from_secs(1);
    let outcome = guest
        .netns
        .run(|| TcpStream::connect_timeout(&at("93.184.216.34:80"), waited))?;
    assert!(outcome.is_err(), "{outcome:?}");
    assert!(fixture.inbound(Reason::TargetNotListening)? > 1);
    Ok(())
}
