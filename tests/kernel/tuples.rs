//! Original destinations are exact: whatever ports are used again, and however many there are.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use anyhow::ensure;
use sidecar_tests::{
    DEADLINE, Kind, Mode, Probe, Server, apps::wire::canonical, poll::poll_result, require_root,
};

use crate::{
    fixture::{Fixture, serve},
    plan::{Planner, at, exempting_self, proxy},
};

fn captured() -> anyhow::Result<Fixture> {
    Fixture::of_pod(
        Planner::new()
            .proxied()
            .outbound_default(proxy())
            .inbound_default(exempting_self(proxy())),
    )
}

/// One source port, to two ports of a pod at a time.
#[test]
fn one_client_port_may_be_connected_to_two_ports_of_the_workload() -> anyhow::Result<()> {
    require_root!();
    let mut fixture = Fixture::without_plan()?;
    fixture.follow(
        Planner::new()
            .proxied()
            .outbound_default(proxy())
            .inbound_default(exempting_self(proxy())),
    )?;
    // To call from. The dataplane does not look again, so they are not the workload's.
    for source in ["10.3.0.1/32", "fd00:3::1/128"] {
        fixture.netns.add_address("lo", source.parse()?)?;
    }
    let _proxy = serve(fixture.as_proxy(), "[::]:15006", "proxy")?;
    let stranger = fixture.stranger()?;
    for (source, called) in [
        ("10.3.0.1:40001", ["10.4.0.1:8080", "10.4.0.1:9090"]),
        (
            "[fd00:3::1]:40001",
            ["[fd00:4::1]:8080", "[fd00:4::1]:9090"],
        ),
    ] {
        let mut sockets = Vec::new();
        for called in called {
            let socket = stranger.socket(Kind::tcp(at(source)))??;
            socket.bind(at(source))??;
            socket.connect(at(called))??;
            sockets.push((called, socket));
        }
        for (called, socket) in sockets {
            let seen = socket.banner()??;
            assert_eq!(seen.original_dst, Some(at(called)));
            assert_eq!(seen.peer.map(canonical), Some(at(source)));
        }
    }
    Ok(())
}

/// The same few source ports over and over, each time to another destination.
#[test]
fn a_port_that_is_used_again_at_once_has_its_new_destination() -> anyhow::Result<()> {
    require_root!();
    let fixture = captured()?;
    let _proxy = serve(fixture.as_proxy(), "0.0.0.0:15001", "proxy")?;
    let app = fixture.app()?;
    for turn in 0..300_u32 {
        let port = 40_000 + u16::try_from(turn % 3)?;
        let asked = at(&format!("10.96.{}.{}:80", turn / 200, turn % 200 + 1));
        let socket = app.socket(Kind::Tcp4)??;
        socket.bind(SocketAddr::new(at("10.244.1.5:0").ip(), port))??;
        socket.connect(asked)??;
        assert_eq!(socket.banner()??.original_dst, Some(asked), "turn {turn}");
    }
    Ok(())
}

/// A socket that is disconnected and connected elsewhere is asked for its new destination.
#[test]
fn a_socket_connected_again_has_its_new_destination() -> anyhow::Result<()> {
    require_root!();
    let fixture = captured()?;
    let _proxies = [
        serve(fixture.as_proxy(), "0.0.0.0:15001", "proxy")?,
        serve(fixture.inside(), "0.0.0.0:8080", "app")?,
    ];
    let app = fixture.app()?;
    let socket = app.socket(Kind::Tcp4)??;
    for (asked, name, original) in [
        ("10.96.0.1:80", "proxy", Some("10.96.0.1:80")),
        ("10.96.0.2:81", "proxy", Some("10.96.0.2:81")),
        ("127.0.0.1:8080", "app", None),
        // Straight to the capture port, from the port that was captured before.
        ("127.0.0.1:15001", "proxy", None),
        ("10.96.0.3:82", "proxy", Some("10.96.0.3:82")),
    ] {
        socket.connect(at(asked))??;
        assert_eq!(socket.peer()??, at(asked));
        let seen = socket.banner()??;
        assert_eq!(
            (seen.name.as_str(), seen.original_dst),
            (name, original.map(at)),
            "{asked}"
        );
        socket.disconnect()??;
    }
    Ok(())
}

/// Connections of one process: it cannot have many more open.
const EACH: u32 = 15_000;
/// Processes that connect, and as many that accept.
const PROCESSES: usize = 4;

/// More than there are source ports for one loopback address (28,232): all at once, each with its
/// own destination.
#[test]
fn sixty_thousand_connections_at_a_time() -> anyhow::Result<()> {
    require_root!();
    let fixture = captured()?;
    let mut proxies = Vec::new();
    for _ in 0..PROCESSES {
        let proxy = Server::tcp(at("0.0.0.0:15001"))
            .place(fixture.as_proxy())
            .mode(Mode::Keep)
            .reuse_port()
            .start()?;
        proxies.push(proxy);
    }
    let asked: Vec<_> = (1..=7).map(|n| at(&format!("10.96.0.{n}:80"))).collect();
    let apps = (0..PROCESSES)
        .map(|_| fixture.app())
        .collect::<anyhow::Result<Vec<Probe>>>()?;
    let mut made: BTreeSet<(SocketAddr, SocketAddr)> = BTreeSet::new();
    let mut twice = 0_u32;
    let mut ports: BTreeMap<SocketAddr, u32> = BTreeMap::new();
    for app in &apps {
        let hoarded = app.hoard(&asked, EACH)?;
        assert_eq!(hoarded.errno, None, "after {} more", hoarded.made.len());
        for connection in hoarded.made {
            *ports.entry(connection.0).or_default() += 1;
            if !made.insert(connection) {
                twice += 1;
            }
        }
    }
    let wanted = EACH as usize * PROCESSES;
    // One source port may lead to one destination by several of the proxy's addresses.
    assert_eq!(made.len() + twice as usize, wanted);
    assert!(
        ports.values().any(|times| *times > 1),
        "no port was used again"
    );
    let mut kept = Vec::new();
    poll_result(DEADLINE, "the proxies to accept all", || {
        kept.clear();
        for proxy in &mut proxies {
            kept.extend(proxy.kept()?);
        }
        ensure!(kept.len() == wanted, "{} of {wanted} accepted", kept.len());
        Ok(())
    })?;
    let known: BTreeSet<_> = kept
        .iter()
        .filter_map(|(peer, original)| Some((*peer, (*original)?)))
        .collect();
    // Not printed whole if they differ: there are too many.
    assert_eq!(known.symmetric_difference(&made).count(), 0);
    Ok(())
}
