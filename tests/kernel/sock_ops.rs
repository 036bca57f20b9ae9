//! `sock_ops`: original destinations are known by the connection's client end before its SYN
//! leaves.
//! (What it learns of listening sockets is tested with `sk_lookup`.)

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener},
};

use anyhow::Context as _;
use sidecar_agent::dataplane::{
    Binding,
    dump::{self, What},
    netns::Netns,
};
use sidecar_common::{Endpoint, standin, values::Original};
use sidecar_tests::{
    Cgroup, Kind,
    apps::{
        Socket,
        wire::{canonical, mapped},
    },
    require_root,
};

use crate::{
    fixture::{Fixture, Loaded, namespace, open_cgroup, reached, serve},
    plan::{Planner, at, direct, exempting_self, proxy, relay},
};

/// Takes out what is published for a connection with these ends.
fn take(
    fixture: &Fixture,
    client: SocketAddr,
    server: SocketAddr,
) -> anyhow::Result<Option<Original>> {
    let (client, server) = (canonical(client), canonical(server));
    let originals = fixture.loaded.dataplane.originals()?;
    Ok(originals.take(fixture.workload, client.into(), server.into()))
}

/// Both ends of the next connection: the client's and the listener's.
fn accept(listener: &TcpListener) -> anyhow::Result<(SocketAddr, SocketAddr)> {
    let (accepted, peer) = listener.accept()?;
    Ok((peer, accepted.local_addr()?))
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
    let (peer, local) = accept(&listener)?;
    assert_eq!(client(&socket)?, peer);
    assert_eq!(
        take(&fixture, peer, local)?,
        Some(Original {
            dst: at("10.1.0.1:80").into(),
            plan,
            listener: 7,
            kind: Original::REDIRECTED,
        })
    );
    assert_eq!(take(&fixture, peer, local)?, None);
    Ok(())
}

/// By IPv4 the address that it is called at tells the proxy (`sidecar_common::standin`), and nothing
/// is published.
#[test]
fn what_goes_to_the_proxy_is_published_unless_a_stand_in_tells() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::new(Planner::new().proxied().outbound_default(proxy()))?;
    let listener = capture(&fixture, "[::]:15001")?;
    let app = fixture.app()?;
    for asked in [
        at("10.1.0.1:80"),
        at("[fd00:1::1]:443"),
        mapped(at("10.1.0.2:81")),
    ] {
        let _socket = app.connect(asked)??;
        let (peer, local) = accept(&listener)?;
        let original = take(&fixture, peer, local)?;
        let asked: Endpoint = canonical(asked).into();
        let local: Endpoint = canonical(local).into();
        if asked.addr.is_v4() {
            assert_eq!(original, None);
            assert_eq!(standin::slot_of(&local.addr), Some(standin::slot(&asked)));
        } else {
            assert_eq!(original.map(|original| original.dst), Some(asked));
        }
    }
    Ok(())
}

/// The second destination of a slot has no stand-in.
#[test]
fn destinations_that_share_a_slot_are_told_apart() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::new(Planner::new().proxied().outbound_default(proxy()))?;
    let slot = |port: u16| standin::slot(&SocketAddr::from(([10, 1, 0, 1], port)).into());
    let mut ports = BTreeMap::new();
    let (one, other) = (1024..=u16::MAX)
        .find_map(|port| Some((ports.insert(slot(port), port)?, port)))
        .context("no two ports share a slot")?;
    let app = fixture.app()?;
    let _proxy = serve(fixture.as_proxy(), "0.0.0.0:15001", "proxy")?;
    for port in [one, other, one] {
        let asked = SocketAddr::from(([10, 1, 0, 1], port));
        let socket = app.connect(asked)??;
        assert_eq!(socket.banner()??.original_dst, Some(asked));
        assert_eq!(socket.peer()??, asked);
    }
    Ok(())
}

/// In the host's namespace others could call a stand-in: there it is used by nobody.
#[test]
fn only_who_has_a_namespace_of_its_own_has_stand_ins() -> anyhow::Result<()> {
    require_root!();
    let mut loaded = Loaded::new()?;
    let cgroups = [Cgroup::new("own")?, Cgroup::new("host")?];
    let own = namespace()?;
    let places = [own.path().to_str(), None];
    for ((cgroup, netns), has) in cgroups.iter().zip(places).zip([true, false]) {
        let netns = Netns::open(netns)?;
        let cgroup = open_cgroup(cgroup)?;
        loaded.dataplane.attach(&Binding {
            cgroup: &cgroup,
            proxy_cgroup: None,
            netns: &netns,
        })?;
        let identities = dump::read(&loaded.pin_dir(), &[What::Identities])?.identities;
        let identities = identities.unwrap_or_default();
        let identity = identities.iter().find(|of| of.cgroup == cgroup.id);
        let flags = &identity.context("it is not told")?.flags;
        assert_eq!(flags.contains(&"own-netns"), has, "{flags:?}");
    }
    Ok(())
}

#[test]
fn what_is_direct_or_passes_is_not_published() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::new(Planner::new().outbound("10.1.0.1:80", direct("10.9.0.1:80")))?;
    let listener = capture(&fixture, "0.0.0.0:80")?;
    let app = fixture.app()?;
    for asked in ["10.1.0.1:80", "10.1.0.2:80", "127.0.0.1:80"] {
        let _socket = app.connect(at(asked))??;
        let (peer, local) = accept(&listener)?;
        assert_eq!(take(&fixture, peer, local)?, None);
    }
    Ok(())
}

/// The key has both ends, so the same source port must not yield what was before.
#[test]
fn a_straight_call_to_the_capture_port_takes_away_what_was_left() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::new(Planner::new().proxied().outbound_default(proxy()))?;
    // It closes first, so that the client's port is free at once.
    let _proxy = fixture.serve("[::]:15001")?;
    let app = fixture.app()?;
    let source = at("[::1]:40002");
    let visit = |destination: SocketAddr| -> anyhow::Result<SocketAddr> {
        let socket = app.socket(Kind::Tcp6)??;
        socket.bind(source)??;
        socket.connect(destination)??;
        reached(&socket.banner()??)
    };
    let service = at("[fd00:1::1]:80");
    let capture_port = visit(service)?;
    visit(capture_port)?;
    assert_eq!(take(&fixture, source, capture_port)?, None);
    // What was taken away was there.
    let capture_port = visit(service)?;
    assert!(take(&fixture, source, capture_port)?.is_some());
    Ok(())
}

/// Two connections may share a source port when they lead to different places.
#[test]
fn a_call_elsewhere_from_the_same_port_takes_nothing_away() -> anyhow::Result<()> {
    require_root!();
    let plan = Planner::new()
        .proxied()
        .outbound_default(exempting_self(proxy()))
        .outbound("[fd00:1::9]:80", direct("[::1]:8080"));
    let fixture = Fixture::new(plan)?;
    let listener = capture(&fixture, "[::]:15001")?;
    let _other = capture(&fixture, "[::1]:8080")?;
    let app = fixture.app()?;
    let source = at("[::1]:40001");
    let from_source = |destination: &str| -> anyhow::Result<Socket<'_>> {
        let socket = app.socket(Kind::Tcp6)??;
        socket.bind(source)??;
        socket.connect(at(destination))??;
        Ok(socket)
    };
    let _captured = from_source("[fd00:1::1]:80")?;
    let passed = from_source("[::1]:8080")?;
    drop(passed);
    let (peer, local) = accept(&listener)?;
    assert!(
        take(&fixture, peer, local)?.is_some(),
        "after a call that passed"
    );
    Ok(())
}
