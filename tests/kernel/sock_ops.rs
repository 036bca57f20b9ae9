//! `sock_ops`: original destinations are known by the connection's client end before its SYN
//! leaves.
//! (What it learns of listening sockets is tested with `sk_lookup`.)

use std::net::{SocketAddr, TcpListener};

use sidecar_common::values::Original;
use sidecar_tests::{
    Kind,
    apps::{
        Socket,
        wire::{canonical, mapped},
    },
    require_root,
};

use crate::{
    fixture::Fixture,
    plan::{OUTBOUND_PORT, Planner, at, direct, exempting_self, pass, proxy, relay},
};

/// Takes out what is published for a client end.
fn take(fixture: &Fixture, client: SocketAddr) -> anyhow::Result<Option<Original>> {
    Ok(fixture
        .loaded
        .dataplane
        .originals()?
        .take(fixture.workload, client.into()))
}

/// A listener in the place of the proxy, which asks for nothing.
fn capture(fixture: &Fixture, address: &str) -> anyhow::Result<TcpListener> {
    let address = at(address);
    Ok(fixture.netns.run(|| TcpListener::bind(address))??)
}

fn client(socket: &Socket<'_>) -> anyhow::Result<SocketAddr> {
    Ok(canonical(socket.local()??))
}

#[test]
fn what_goes_to_the_relay_is_published_once() -> anyhow::Result<()> {
    require_root!();
    let mut fixture = Fixture::without_plan()?;
    let listener = fixture.relay()?;
    let plan = fixture.follow(Planner::new().outbound("10.1.0.1:80", relay()))?;
    let app = fixture.app()?;
    let socket = app.connect(at("10.1.0.1:80"))??;
    let (_accepted, peer) = listener.accept()?;
    assert_eq!(client(&socket)?, peer);
    let original = take(&fixture, peer)?;
    let (dst, via_local) = (
        at("10.1.0.1:80").into(),
        listener.local_addr()?.port().into(),
    );
    assert_eq!(
        original,
        Some(Original {
            dst,
            plan,
            listener: 7,
            via_local
        })
    );
    assert_eq!(take(&fixture, peer)?, None);
    Ok(())
}

#[test]
fn what_goes_to_the_proxy_is_published_in_every_family() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::new(Planner::new().outbound_default(proxy()))?;
    let _capture = capture(&fixture, "[::]:15001")?;
    let app = fixture.app()?;
    for asked in [
        at("10.1.0.1:80"),
        at("[fd00:1::1]:443"),
        mapped(at("10.1.0.2:81")),
    ] {
        let socket = app.connect(asked)??;
        let original = take(&fixture, client(&socket)?)?;
        assert_eq!(original.map(|original| original.dst), Some(asked.into()));
    }
    Ok(())
}

#[test]
fn what_is_direct_or_passes_is_not_published() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::new(Planner::new().outbound("10.1.0.1:80", direct("10.9.0.1:80")))?;
    let _server = capture(&fixture, "0.0.0.0:80")?;
    let app = fixture.app()?;
    for asked in ["10.1.0.1:80", "10.1.0.2:80", "127.0.0.1:80"] {
        let socket = app.connect(at(asked))??;
        assert_eq!(take(&fixture, client(&socket)?)?, None);
    }
    Ok(())
}

/// The key is the client end, so the same source port must not yield what was before; from which
/// address of the workload does not matter.
#[test]
fn a_straight_call_to_the_capture_port_takes_away_what_was_left() -> anyhow::Result<()> {
    require_root!();
    let plan = Planner::new()
        .outbound_default(proxy())
        .outbound("127.0.0.1:15001", pass())
        .outbound("10.3.0.1:15001", pass())
        .outbound("[::1]:15001", pass());
    let fixture = Fixture::new(plan)?;
    fixture.netns.add_address("lo", "10.3.0.1/32".parse()?)?;
    // It closes first, so that the client's port is free at once.
    let _proxy = fixture.serve("[::]:15001")?;
    let app = fixture.app()?;
    for (source, service, straight) in [
        ("127.0.0.1:40001", "10.1.0.1:80", "127.0.0.1:15001"),
        ("10.3.0.1:40002", "10.1.0.1:80", "10.3.0.1:15001"),
        ("127.0.0.1:40003", "10.1.0.1:80", "10.3.0.1:15001"),
        ("10.3.0.1:40004", "10.1.0.1:80", "127.0.0.1:15001"),
        ("[::1]:40005", "[fd00:1::1]:80", "[::1]:15001"),
    ] {
        for destination in [service, straight] {
            let socket = app.socket(Kind::tcp(at(source)))??;
            socket.bind(at(source))??;
            socket.connect(at(destination))??;
            socket.banner()??;
        }
        assert_eq!(take(&fixture, at(source))?, None, "{source} to {straight}");
    }
    Ok(())
}

/// Two connections may share a source port when they lead to different places.
#[test]
fn a_call_elsewhere_from_the_same_port_takes_nothing_away() -> anyhow::Result<()> {
    require_root!();
    let plan = Planner::new()
        .outbound_default(exempting_self(proxy()))
        .outbound("10.1.0.9:80", direct("127.0.0.1:8080"));
    let fixture = Fixture::new(plan)?;
    let _listeners = [
        capture(&fixture, &format!("127.0.0.1:{OUTBOUND_PORT}"))?,
        capture(&fixture, "127.0.0.1:8080")?,
    ];
    let app = fixture.app()?;
    let source = at("127.0.0.1:40001");
    let from_source = |destination: &str| -> anyhow::Result<Socket<'_>> {
        let socket = app.socket(Kind::Tcp4)??;
        socket.bind(source)??;
        socket.connect(at(destination))??;
        Ok(socket)
    };
    let captured = from_source("10.1.0.1:80")?;
    let passed = from_source("127.0.0.1:8080")?;
    drop(passed);
    assert!(
        take(&fixture, client(&captured)?)?.is_some(),
        "after a call that passed"
    );
    Ok(())
}
