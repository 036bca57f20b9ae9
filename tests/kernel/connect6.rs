//! connect6: IPv6 connections of the workload, and IPv4 ones of IPv6 sockets.

use anyhow::Context as _;
use rustix::io::Errno;
use sidecar_common::Reason;
use sidecar_tests::{Kind, apps::wire::mapped, require_root};

use crate::{
    fixture::{Fixture, reached, serve},
    plan::{Planner, at, deny, direct, proxy, relay},
};

#[test]
fn rules_for_ipv6_are_followed_and_nothing_else_is_touched() -> anyhow::Result<()> {
    require_root!();
    let plan = Planner::new()
        .outbound("[fd00:1::1]:80", direct("[fd00:9::1]:8080"))
        .prefix(80, "fd00:2::/32", direct("[fd00:9::2]:80"))
        .prefix(80, "fd00:2::/64", direct("[fd00:9::3]:80"))
        .prefix(0, "fd00:3::/32", deny());
    let fixture = Fixture::new(plan)?;
    let _servers = [fixture.serve("[::]:80")?, fixture.serve("[::]:8080")?];
    let app = fixture.app()?;
    for (destination, target) in [
        ("[fd00:1::1]:80", "[fd00:9::1]:8080"),
        ("[fd00:1::2]:80", "[fd00:1::2]:80"),
        ("[fd00:1::1]:8080", "[fd00:1::1]:8080"),
        ("[fd00:2:0:1::1]:80", "[fd00:9::2]:80"),
        ("[fd00:2::1]:80", "[fd00:9::3]:80"),
        ("[fd00:2::1]:8080", "[fd00:2::1]:8080"),
        ("[::1]:80", "[::1]:80"),
        ("10.1.0.1:80", "10.1.0.1:80"),
    ] {
        let seen = app.visit(at(destination))?.context(destination)?;
        assert_eq!(reached(&seen)?, at(target), "{destination}");
    }
    assert_eq!(app.visit(at("[fd00:3::1]:80"))?, Err(Errno::CONNREFUSED));
    assert_eq!(fixture.outbound(Reason::EgressService)?, 3);
    assert_eq!(fixture.outbound(Reason::AllowAny)?, 5);
    assert_eq!(fixture.outbound(Reason::RegistryOnly)?, 1);
    Ok(())
}

#[test]
fn a_mapped_destination_follows_the_rules_for_ipv4() -> anyhow::Result<()> {
    require_root!();
    let plan = Planner::new()
        .outbound("10.1.0.1:80", direct("10.9.0.1:80"))
        .prefix(0, "10.2.0.0/16", deny());
    let fixture = Fixture::new(plan)?;
    let _server = fixture.serve("0.0.0.0:80")?;
    let app = fixture.app()?;
    let hit = app.visit(mapped(at("10.1.0.1:80")))??;
    assert_eq!(reached(&hit)?, at("10.9.0.1:80"));
    let miss = app.visit(mapped(at("10.1.0.2:80")))??;
    assert_eq!(reached(&miss)?, at("10.1.0.2:80"));
    assert_eq!(
        app.visit(mapped(at("10.2.0.1:80")))?,
        Err(Errno::CONNREFUSED)
    );
    Ok(())
}

/// The other family can be reached from an IPv6 socket only.
#[test]
fn targets_of_the_other_family() -> anyhow::Result<()> {
    require_root!();
    let plan = Planner::new()
        .outbound("10.1.0.1:80", direct("[fd00:9::1]:80"))
        .outbound("[fd00:1::1]:80", direct("10.9.0.1:80"));
    let fixture = Fixture::new(plan)?;
    let _server = fixture.serve("[::]:80")?;
    let app = fixture.app()?;
    assert_eq!(app.visit(at("10.1.0.1:80"))?, Err(Errno::CONNREFUSED));
    assert_eq!(fixture.outbound(Reason::PlanIncomplete)?, 1);
    assert_eq!(fixture.outbound(Reason::EgressService)?, 0);
    let from_v6 = app.visit(mapped(at("10.1.0.1:80")))??;
    assert_eq!(reached(&from_v6)?, at("[fd00:9::1]:80"));
    let to_v4 = app.visit(at("[fd00:1::1]:80"))??;
    assert_eq!(reached(&to_v4)?, at("10.9.0.1:80"));
    assert_eq!(fixture.outbound(Reason::EgressService)?, 2);
    Ok(())
}

#[test]
fn the_proxy_is_called_at_the_loopback_address_of_the_family() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::new(Planner::new().proxied().outbound_default(proxy()))?;
    // Of all the loopback addresses that IPv4 is led to, it listens on one only.
    let _proxies = [
        serve(fixture.as_proxy(), "127.0.0.1:15001", "proxy")?,
        serve(fixture.as_proxy(), "[::1]:15001", "proxy")?,
    ];
    let app = fixture.app()?;
    for destination in [
        at("[fd00:1::1]:80"),
        mapped(at("10.1.0.1:80")),
        at("10.1.0.1:80"),
    ] {
        for seen in app.visits(destination, 20)? {
            let reached = reached(&seen?)?;
            assert!(reached.ip().is_loopback(), "{destination}: {reached}");
            assert_eq!(reached.port(), 15001);
            let asked = destination.ip().to_canonical();
            assert_eq!(reached.is_ipv4(), asked.is_ipv4(), "{destination}");
        }
    }
    Ok(())
}

#[test]
fn a_relay_for_ipv4_alone_serves_ipv4_alone() -> anyhow::Result<()> {
    require_root!();
    let mut fixture = Fixture::new(Planner::new().outbound_default(relay()))?;
    let relay = fixture.relay()?;
    let app = fixture.app()?;
    assert_eq!(app.visit(at("[fd00:1::1]:80"))?, Err(Errno::CONNREFUSED));
    assert_eq!(fixture.outbound(Reason::TargetNotListening)?, 1);
    let socket = app.connect(mapped(at("10.1.0.1:80")))??;
    assert_eq!(mapped(relay.accept()?.1), socket.local()??);
    Ok(())
}

#[test]
fn a_plan_that_is_not_in_the_map_refuses_everything() -> anyhow::Result<()> {
    require_root!();
    let mut fixture = Fixture::new(Planner::new())?;
    let _server = fixture.serve("[::]:80")?;
    let app = fixture.app()?;
    let destination = at("[fd00:1::1]:80");
    assert_eq!(reached(&app.visit(destination)??)?, destination);
    fixture
        .loaded
        .dataplane
        .switch(fixture.workload, 999, &Planner::new().build())?;
    let socket = app.socket(Kind::Tcp6)??;
    assert_eq!(socket.connect(destination)?, Err(Errno::CONNREFUSED));
    assert_eq!(fixture.outbound(Reason::PlanIncomplete)?, 1);
    Ok(())
}
