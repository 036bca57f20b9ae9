//! What is led to the proxy comes from where its destination would have seen it come from.

use std::net::SocketAddr;

use sidecar_common::{keys::OwnerKey, values::PlanHeader};
use sidecar_tests::{
    Kind, Probe,
    apps::wire::{canonical, mapped},
    require_root,
};

use crate::{
    fixture::{Fixture, serve},
    plan::{PROXY_UID, Planner, at, proxy},
};

/// From where the proxy sees a connection come.
fn source(fixture: &Fixture, client: &Probe, to: SocketAddr) -> anyhow::Result<String> {
    let _proxies = [
        serve(fixture.as_proxy(), "[::]:15001", "proxy")?,
        serve(fixture.as_proxy(), "[::]:15006", "proxy")?,
        serve(fixture.as_proxy(), "[::]:15053", "proxy")?,
    ];
    let seen = client.visit(to)??;
    assert_eq!(seen.name, "proxy", "{to}");
    assert_eq!(seen.original_dst, Some(canonical(to)));
    Ok(seen.peer.map_or("nowhere".to_owned(), |peer| {
        canonical(peer).ip().to_string()
    }))
}

#[test]
fn the_source_is_that_of_the_route_to_the_destination() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::of_pod(Planner::new().proxied().outbound_default(proxy()))?;
    let app = fixture.app()?;
    for (destination, from) in [
        (at("10.96.0.20:80"), "10.244.1.5"),
        (at("93.184.216.34:443"), "10.244.1.5"),
        (at("192.168.50.1:80"), "192.168.50.5"),
        (mapped(at("10.96.0.20:80")), "10.244.1.5"),
        (mapped(at("192.168.50.1:80")), "192.168.50.5"),
        (at("[fd00:96::1]:80"), "fd00:244::5"),
        (at("[fd00:50::1]:80"), "fd00:50::5"),
    ] {
        assert_eq!(source(&fixture, &app, destination)?, from, "{destination}");
    }
    Ok(())
}

/// One interface only: the address is with the workload, no route is looked up.
#[test]
fn the_source_is_the_only_one_there_is_and_follows_its_changes() -> anyhow::Result<()> {
    require_root!();
    let mut fixture = Fixture::of_pod(Planner::new().proxied().outbound_default(proxy()))?;
    fixture.netns.ip("link del net1")?;
    fixture.loaded.dataplane.refresh();
    let app = fixture.app()?;
    assert_eq!(source(&fixture, &app, at("10.96.0.20:80"))?, "10.244.1.5");
    assert_eq!(
        source(&fixture, &app, at("[fd00:96::1]:80"))?,
        "fd00:244::5"
    );
    fixture.netns.ip("addr del 10.244.1.5/24 dev eth0")?;
    fixture
        .netns
        .add_address("eth0", "10.244.7.9/24".parse()?)?;
    fixture.netns.add_route("default via 10.244.7.1")?;
    fixture.loaded.dataplane.refresh();
    assert_eq!(source(&fixture, &app, at("10.96.0.20:80"))?, "10.244.7.9");
    Ok(())
}

/// What a new plan sets up in the namespace makes the dataplane look at its addresses; others that
/// have changed meanwhile are not passed over.
#[test]
fn the_source_follows_changes_that_a_new_plan_is_the_first_to_see() -> anyhow::Result<()> {
    require_root!();
    let mut fixture = Fixture::of_pod(Planner::new().outbound_default(proxy()))?;
    fixture.netns.ip("link del net1")?;
    fixture.loaded.dataplane.refresh();
    fixture.netns.ip("addr del 10.244.1.5/24 dev eth0")?;
    fixture
        .netns
        .add_address("eth0", "10.244.7.9/24".parse()?)?;
    fixture.netns.add_route("default via 10.244.7.1")?;
    fixture.follow(Planner::new().proxied().outbound_default(proxy()))?;
    let app = fixture.app()?;
    assert_eq!(source(&fixture, &app, at("10.96.0.20:80"))?, "10.244.7.9");
    Ok(())
}

#[test]
fn calls_to_oneself_come_from_oneself() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::of_pod(
        Planner::new()
            .proxied()
            .outbound_default(proxy())
            .dns(&["0.0.0.0/0", "::/0"]),
    )?;
    let app = fixture.app()?;
    let own = Probe::start(fixture.as_proxy())?;
    for (client, destination, from) in [
        (&own, "10.244.1.5:8080", "10.244.1.5"),
        (&own, "192.168.50.5:8080", "192.168.50.5"),
        (&own, "[fd00:244::5]:8080", "fd00:244::5"),
        (&own, "127.0.0.2:8080", "127.0.0.1"),
        (&app, "10.244.1.5:53", "10.244.1.5"),
        (&app, "127.0.0.53:53", "127.0.0.1"),
        (&app, "[::1]:53", "::1"),
        (&app, "10.96.0.10:53", "10.244.1.5"),
    ] {
        let destination = at(destination);
        assert_eq!(
            source(&fixture, client, destination)?,
            from,
            "{destination}"
        );
    }
    Ok(())
}

#[test]
fn a_bound_address_stays() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::of_pod(Planner::new().proxied().outbound_default(proxy()))?;
    let _proxy = serve(fixture.as_proxy(), "0.0.0.0:15001", "proxy")?;
    let app = fixture.app()?;
    for bound in ["192.168.50.5:0", "192.168.50.5:40001"] {
        let socket = app.socket(Kind::Tcp4)??;
        socket.bind(at(bound))??;
        socket.connect(at("10.96.0.20:80"))??;
        let seen = socket.banner()??;
        assert_eq!(seen.peer.map(|peer| peer.ip()), Some(at(bound).ip()));
        assert_eq!(seen.original_dst, Some(at("10.96.0.20:80")));
    }
    Ok(())
}

/// 127.0.0.6 is where inbound connections are passed on from: they are not captured again.
#[test]
fn what_the_proxy_passes_on_is_left_alone() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::of_pod(
        Planner::new()
            .proxied()
            .owner(OwnerKey::PROXY_UID, 4242)
            .flags(PlanHeader::LOOPBACK_INCLUDED)
            .outbound_default(proxy()),
    )?;
    let _app = serve(fixture.inside(), "[::]:8080", "app")?;
    for uid in [PROXY_UID, 4242, 1000] {
        let client = Probe::start(fixture.inside().user(uid, uid))?;
        for (bound, destination) in [
            ("127.0.0.6:0", "10.244.1.5:8080"),
            ("[::6]:0", "[fd00:244::5]:8080"),
        ] {
            let socket = client.socket(Kind::tcp(at(bound)))??;
            socket.bind(at(bound))??;
            socket.connect(at(destination))??;
            let seen = socket.banner()??;
            assert_eq!(seen.name, "app", "{uid} {destination}");
            assert_eq!(
                seen.peer.map(canonical).map(|p| p.ip()),
                Some(at(bound).ip())
            );
        }
    }
    Ok(())
}

/// As long as the kernel looks for duplicates of an address, nobody can bind it: what the proxy passes
/// on would come from the workload's own address, and be led to the proxy again.
#[test]
fn the_address_that_inbound_ipv6_is_passed_on_from_is_of_use_at_once() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::of_pod(Planner::new().proxied())?;
    let addresses = fixture.netns.ip("-6 -o address show dev lo to ::6")?;
    assert!(
        addresses.contains("::6/128 scope global nodad"),
        "{addresses}"
    );
    Ok(())
}
