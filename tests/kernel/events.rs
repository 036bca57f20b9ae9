//! What programs tell while somebody traces, and that they are silent otherwise.

use std::net::SocketAddr;

use rustix::io::Errno;
use sidecar_agent::dataplane::Tap;
use sidecar_common::{
    Event, Path, Reason,
    decide::{Direction, Transport},
    values::{NO_LISTENER, Rule},
};
use sidecar_tests::{Kind, apps::wire::mapped, require_root};

use crate::{
    dns::answering,
    fixture::{Fixture, reached, serve},
    plan::{DNS_PORT, OUTBOUND_PORT, Planner, at, deny, direct, proxy, relay, rule},
};

/// An event without what differs from run to run.
#[derive(Debug, PartialEq)]
struct Told {
    direction: Direction,
    transport: Transport,
    path: Path,
    reason: Reason,
    listener: u32,
    destination: SocketAddr,
    /// Where it was led to, if elsewhere.
    target: Option<SocketAddr>,
}

fn told(
    direction: Direction,
    path: Path,
    reason: Reason,
    destination: &str,
    target: Option<&str>,
) -> Told {
    Told {
        direction,
        transport: Transport::Tcp,
        path,
        reason,
        listener: NO_LISTENER,
        destination: at(destination),
        target: target.map(at),
    }
}

fn outbound(path: Path, reason: Reason, destination: &str, target: Option<&str>) -> Told {
    told(Direction::Outbound, path, reason, destination, target)
}

fn inbound(path: Path, reason: Reason, destination: &str, target: Option<&str>) -> Told {
    told(Direction::Inbound, path, reason, destination, target)
}

/// Takes all events there are; their times must be in order.
fn events(tap: &mut Tap) -> Vec<Event> {
    let events: Vec<Event> = std::iter::from_fn(|| tap.take()).collect();
    assert!(events.is_sorted_by_key(|event| event.time), "{events:?}");
    events
}

fn as_told(event: &Event) -> Told {
    let is_elsewhere = event.target.port != 0 && event.target != event.destination;
    Told {
        direction: Direction::from_number(event.direction).expect("a direction"),
        transport: Transport::from_number(event.transport).expect("a transport"),
        path: Path::from_number(event.path).expect("a path"),
        reason: Reason::from_number(event.reason).expect("a reason"),
        listener: event.listener,
        destination: event.destination.into(),
        target: is_elsewhere.then(|| event.target.into()),
    }
}

fn taken(tap: &mut Tap) -> Vec<Told> {
    events(tap).iter().map(as_told).collect()
}

#[test]
fn every_path_is_told_outbound_while_somebody_asks() -> anyhow::Result<()> {
    require_root!();
    let plan = Planner::new()
        .outbound("10.1.0.1:80", direct("10.9.0.1:80"))
        .outbound("10.1.0.2:80", deny())
        .outbound("10.1.0.3:80", relay())
        .outbound("10.1.0.4:80", rule(Path::Direct, Reason::EgressService))
        .outbound("[fd00:1::1]:80", deny());
    let mut fixture = Fixture::new(plan)?;
    let relay_listener = fixture.relay()?;
    let relay_at = relay_listener.local_addr()?.to_string();
    let _server = fixture.serve("[::]:80")?;
    let app = fixture.app()?;
    let mut tap = fixture.loaded.dataplane.tap()?;
    app.visit(at("10.1.0.1:80"))??;
    assert_eq!(events(&mut tap), [], "nobody has asked yet");
    tap.switch(true)?;

    // What is called is local in the namespace, so each connection also arrives.
    let arrives = |at| inbound(Path::Pass, Reason::UndeclaredPort, at, None);
    app.visit(at("10.1.0.1:80"))??;
    let expected = [
        outbound(
            Path::Direct,
            Reason::EgressService,
            "10.1.0.1:80",
            Some("10.9.0.1:80"),
        ),
        arrives("10.9.0.1:80"),
    ];
    assert_eq!(taken(&mut tap), expected);
    assert_eq!(app.visit(at("10.1.0.2:80"))?, Err(Errno::CONNREFUSED));
    let expected = [outbound(
        Path::Deny,
        Reason::RegistryOnly,
        "10.1.0.2:80",
        None,
    )];
    assert_eq!(taken(&mut tap), expected);
    let _held = app.connect(at("10.1.0.3:80"))??;
    let expected = [
        Told {
            listener: 7,
            ..outbound(
                Path::Relay,
                Reason::EgressListener,
                "10.1.0.3:80",
                Some(&relay_at),
            )
        },
        arrives(&relay_at),
    ];
    assert_eq!(taken(&mut tap), expected);
    app.visit(at("10.1.0.4:80"))??;
    let expected = [
        outbound(Path::Direct, Reason::EgressService, "10.1.0.4:80", None),
        arrives("10.1.0.4:80"),
    ];
    assert_eq!(taken(&mut tap), expected);
    app.visit(at("10.1.0.5:80"))??;
    let expected = [
        outbound(Path::Pass, Reason::AllowAny, "10.1.0.5:80", None),
        arrives("10.1.0.5:80"),
    ];
    assert_eq!(taken(&mut tap), expected);
    // By IPv6, and from an IPv6 socket to a mapped address.
    assert_eq!(app.visit(at("[fd00:1::1]:80"))?, Err(Errno::CONNREFUSED));
    assert_eq!(
        app.visit(mapped(at("10.1.0.2:80")))?,
        Err(Errno::CONNREFUSED)
    );
    let expected = [
        outbound(Path::Deny, Reason::RegistryOnly, "[fd00:1::1]:80", None),
        outbound(Path::Deny, Reason::RegistryOnly, "10.1.0.2:80", None),
    ];
    assert_eq!(taken(&mut tap), expected);

    tap.switch(false)?;
    app.visit(at("10.1.0.1:80"))??;
    assert_eq!(events(&mut tap), [], "nobody asks any more");
    assert_eq!(tap.lost()?, 0);
    Ok(())
}

#[test]
fn every_path_is_told_inbound() -> anyhow::Result<()> {
    require_root!();
    let to = |target: &str| Rule {
        backends: 1,
        target: at(target).into(),
        listener: 3,
        ..rule(Path::Direct, Reason::IngressListener)
    };
    let plan = Planner::new()
        .inbound("10.2.0.1:80", to("127.0.0.1:8080"))
        .inbound("10.2.0.2:80", to("127.0.0.1:8081"))
        .inbound("10.2.0.3:80", relay())
        .inbound("10.2.0.4:80", deny())
        .listens(8080)
        .listens(8081);
    let mut fixture = Fixture::new(plan)?;
    let _relay = fixture.relay()?;
    let _server = serve(fixture.inside(), "127.0.0.1:8080", "application")?;
    let stranger = fixture.stranger()?;
    let mut tap = fixture.loaded.dataplane.tap()?;
    tap.switch(true)?;
    let ingress = |path, reason, destination, target| Told {
        listener: 3,
        ..inbound(path, reason, destination, target)
    };
    stranger.visit(at("10.2.0.1:80"))??;
    assert!(
        stranger.visit(at("10.2.0.2:80"))?.is_err(),
        "nobody is there"
    );
    let _held = stranger.connect(at("10.2.0.3:80"))??;
    assert!(stranger.visit(at("10.2.0.4:80"))?.is_err(), "it is refused");
    let expected = [
        ingress(
            Path::Direct,
            Reason::IngressListener,
            "10.2.0.1:80",
            Some("127.0.0.1:8080"),
        ),
        ingress(Path::Deny, Reason::TargetNotListening, "10.2.0.2:80", None),
        Told {
            listener: 7,
            ..inbound(Path::Relay, Reason::EgressListener, "10.2.0.3:80", None)
        },
        inbound(Path::Deny, Reason::RegistryOnly, "10.2.0.4:80", None),
    ];
    assert_eq!(taken(&mut tap), expected);
    Ok(())
}

#[test]
fn an_event_tells_workload_plan_source_and_time() -> anyhow::Result<()> {
    require_root!();
    let mut fixture = Fixture::new(Planner::new())?;
    let plan = fixture.loaded.dataplane.word(fixture.workload).plan();
    let _server = fixture.serve("[::]:80")?;
    let mut tap = fixture.loaded.dataplane.tap()?;
    tap.switch(true)?;
    let now = || {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        u64::try_from(now.tv_sec * 1_000_000_000 + now.tv_nsec).expect("after boot")
    };
    let before = now();
    let app = fixture.app()?;
    let bound = app.socket(Kind::Tcp4)??;
    bound.bind(at("10.3.0.9:4321"))??;
    bound.connect(at("10.1.0.1:80"))??;
    let free = app.connect(at("10.1.0.1:80"))??;
    let from = free.local()??;
    let after = now();
    let seen = events(&mut tap);
    let sources: Vec<SocketAddr> = seen.iter().map(|event| event.source.into()).collect();
    let nowhere = SocketAddr::from((std::net::Ipv4Addr::UNSPECIFIED, 0));
    assert_eq!(
        sources,
        [at("10.3.0.9:4321"), at("10.3.0.9:4321"), nowhere, from]
    );
    for event in &seen {
        assert_eq!((event.workload, event.plan), (fixture.workload, plan));
        assert!((before..=after).contains(&event.time), "{event:?}");
        assert_eq!(event.pad, 0);
    }

    // Another plan has another number.
    let other = fixture.follow(Planner::new().outbound_default(deny()))?;
    assert!(app.visit(at("10.1.0.1:80"))?.is_err());
    let seen = events(&mut tap);
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].plan, other);
    Ok(())
}

#[test]
fn a_proxys_connections_and_dns_are_told() -> anyhow::Result<()> {
    require_root!();
    let plan = Planner::new()
        .proxied()
        .outbound_default(proxy())
        .inbound_default(proxy())
        .dns(&["0.0.0.0/0"]);
    let fixture = Fixture::of_pod(plan)?;
    let _proxies = [
        serve(fixture.as_proxy(), "0.0.0.0:15001", "proxy")?,
        serve(fixture.as_proxy(), "0.0.0.0:15006", "proxy")?,
    ];
    let app = fixture.app()?;
    let mut tap = fixture.loaded.dataplane.tap()?;
    tap.switch(true)?;
    let seen = app.visit(at("10.1.0.1:80"))??;
    let led_to = reached(&seen)?;
    assert_eq!(led_to.port(), OUTBOUND_PORT);
    let expected = outbound(
        Path::Proxy,
        Reason::CaptureAll,
        "10.1.0.1:80",
        Some(&led_to.to_string()),
    );
    assert_eq!(
        taken(&mut tap),
        [expected],
        "where it arrives nothing is decided"
    );

    // A query of an unconnected socket, one of a connected one, and what is no query.
    let server = at("10.1.0.53:53");
    let proxy = format!("127.0.0.1:{DNS_PORT}");
    let query = || Told {
        transport: Transport::Udp,
        ..outbound(Path::Proxy, Reason::Dns, "10.1.0.53:53", Some(&proxy))
    };
    answering(&fixture, &proxy, || {
        let socket = app.socket(Kind::Udp4)??;
        let _ = socket.send_to("who", server)?;
        let connected = app.socket(Kind::Udp4)??;
        connected.connect(server)??;
        let _ = socket.send_to("who", at("10.1.0.53:54"))?;
        assert_eq!(taken(&mut tap), [query(), query()]);
        Ok(())
    })
}

#[test]
fn what_finds_the_ring_full_is_counted_and_decided_all_the_same() -> anyhow::Result<()> {
    /// More than the ring holds.
    const MANY: u32 = 12_000;
    require_root!();
    let fixture = Fixture::new(Planner::new().outbound_default(deny()))?;
    let app = fixture.app()?;
    let mut tap = fixture.loaded.dataplane.tap()?;
    tap.switch(true)?;
    for seen in app.visits(at("10.1.0.1:80"), MANY)? {
        assert_eq!(seen, Err(Errno::CONNREFUSED));
    }
    assert_eq!(fixture.outbound(Reason::RegistryOnly)?, u64::from(MANY));
    let lost = tap.lost()?;
    let kept = events(&mut tap);
    assert!(
        lost > 0 && kept.len() > 5000,
        "{lost} lost, {} kept",
        kept.len()
    );
    assert_eq!(kept.len() as u64 + lost, u64::from(MANY));
    // There is room again.
    assert!(app.visit(at("10.1.0.1:80"))?.is_err());
    assert_eq!(events(&mut tap).len(), 1);
    assert_eq!(tap.lost()?, lost);
    Ok(())
}
