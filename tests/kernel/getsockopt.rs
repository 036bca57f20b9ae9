//! cgroup getsockopt: the proxy, and nobody else, is told `SO_ORIGINAL_DST`.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Command, Stdio},
};

use anyhow::Context as _;
use sidecar_common::{Reason, standin};
use sidecar_tests::{
    Cgroup, Kind, Place, Probe,
    apps::{
        Seen,
        wire::{canonical, mapped},
    },
    require_root, skip,
};

use crate::{
    fixture::{Fixture, Loaded, namespace, reached, serve},
    plan::{PROXY_UID, Planner, at, exempting_self, proxy},
};

/// A workload all of whose connections go to the proxy, but for those to itself.
fn captured() -> anyhow::Result<Fixture> {
    Fixture::new(
        Planner::new()
            .proxied()
            .outbound_default(exempting_self(proxy()))
            .inbound("0.0.0.0:9080", proxy())
            .inbound("[::]:9080", proxy())
            .listens(15006),
    )
}

/// What a socket that nobody has touched is told.
fn own_error(fixture: &Fixture, address: &str) -> anyhow::Result<Option<i32>> {
    let _server = fixture.serve(address)?;
    let seen = fixture.stranger()?.visit(at(address))??;
    assert_eq!(seen.original_dst, None);
    Ok(seen.original_dst_errno)
}

#[test]
fn the_proxy_is_told_where_a_connection_was_going() -> anyhow::Result<()> {
    require_root!();
    let fixture = captured()?;
    let app = fixture.app()?;
    for (listen, destinations) in [
        (
            "127.0.0.1:15001",
            vec![at("10.1.0.1:80"), mapped(at("10.1.0.2:81"))],
        ),
        ("[::1]:15001", vec![at("[fd00:1::1]:443")]),
        (
            "[::]:15001",
            vec![
                at("10.1.0.1:80"),
                mapped(at("10.1.0.2:81")),
                at("[fd00:1::1]:80"),
            ],
        ),
    ] {
        let _proxy = serve(fixture.as_proxy(), listen, "proxy")?;
        for destination in destinations {
            let seen = app.visit(destination)??;
            assert_eq!(seen.name, "proxy");
            assert_eq!(
                seen.original_dst,
                Some(canonical(destination)),
                "{listen}: {seen:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn a_process_that_is_not_the_proxy_is_not_told() -> anyhow::Result<()> {
    require_root!();
    let fixture = captured()?;
    let app = fixture.app()?;
    let own = own_error(&fixture, "127.0.0.1:9999")?;
    assert!(own.is_some());
    // Another uid and gid; the right ones outside the workload.
    for place in [
        fixture.inside(),
        fixture.inside().user(PROXY_UID + 1, PROXY_UID + 1),
        fixture.outside().user(PROXY_UID, PROXY_UID),
    ] {
        let _server = serve(place, "0.0.0.0:15001", "other")?;
        let seen = app.visit(at("10.1.0.1:80"))??;
        assert_eq!(
            (seen.original_dst, seen.original_dst_errno),
            (None, own),
            "{place:?}"
        );
    }
    Ok(())
}

#[test]
fn a_straight_call_to_a_capture_port_gets_the_kernels_own_error() -> anyhow::Result<()> {
    require_root!();
    let fixture = captured()?;
    fixture.netns.add_address("lo", "10.3.0.1/32".parse()?)?;
    let app = fixture.app()?;
    let own = own_error(&fixture, "127.0.0.1:9999")?;
    let own6 = own_error(&fixture, "[::1]:9999")?;
    let _proxies = [
        serve(fixture.as_proxy(), "[::]:15001", "proxy")?,
        serve(fixture.as_proxy(), "[::]:15006", "proxy")?,
    ];
    // What stands for a destination means it only to those who are led there.
    let destination = at("10.1.0.1:80");
    assert_eq!(app.visit(destination)??.original_dst, Some(destination));
    let stand_in = standin::address(standin::slot(&destination.into()), 0);
    let stand_in = SocketAddr::new(stand_in.into(), 15001);
    let socket = app.connect(stand_in)??;
    assert_eq!(socket.peer()??, stand_in);
    drop(socket);
    for (straight, own) in [
        (at("127.0.0.1:15001"), own),
        (at("127.0.0.1:15006"), own),
        (at("[::1]:15001"), own6),
        (stand_in, own),
    ] {
        let seen = app.visit(straight)??;
        assert_eq!(
            (seen.original_dst, seen.original_dst_errno),
            (None, own),
            "{straight}"
        );
    }
    Ok(())
}

#[test]
fn an_earlier_connection_from_the_same_port_is_not_answered_for() -> anyhow::Result<()> {
    require_root!();
    let mut fixture = captured()?;
    fixture.netns.add_address("lo", "10.3.0.1/32".parse()?)?;
    fixture.loaded.dataplane.refresh();
    let app = fixture.app()?;
    let own = own_error(&fixture, "127.0.0.1:9999")?;
    let _proxies = [
        serve(fixture.as_proxy(), "0.0.0.0:15001", "proxy")?,
        serve(fixture.as_proxy(), "0.0.0.0:15006", "proxy")?,
    ];
    let visit = |source: SocketAddr, destination: &str| -> anyhow::Result<Seen> {
        let socket = app.socket(Kind::Tcp4)??;
        socket.bind(source)??;
        socket.connect(at(destination))??;
        Ok(socket.banner()??)
    };
    for (source, straight) in [
        ("127.0.0.1:40001", "127.0.0.1:15001"),
        ("127.0.0.1:40002", "127.0.0.1:15006"),
        ("10.3.0.1:40003", "10.3.0.1:15001"),
        ("10.3.0.1:40004", "127.0.0.1:15001"),
        ("127.0.0.1:40005", "10.3.0.1:15001"),
    ] {
        let seen = visit(at(source), "10.1.0.1:80")?;
        assert_eq!(seen.original_dst, Some(at("10.1.0.1:80")), "{source}");
        let seen = visit(at(source), straight)?;
        assert_eq!(seen.peer, Some(at(source)));
        let told = (seen.original_dst, seen.original_dst_errno);
        assert_eq!(told, (None, own), "{source} to {straight}");
    }
    // Nor is an inbound connection.
    let _ = visit(at("127.0.0.1:40006"), "10.1.0.1:80")?;
    let seen = visit(at("127.0.0.1:40006"), "10.3.0.1:9080")?;
    assert_eq!(seen.original_dst, Some(at("10.3.0.1:9080")));
    Ok(())
}

#[test]
fn inbound_the_proxy_is_told_the_address_that_was_called() -> anyhow::Result<()> {
    require_root!();
    let fixture = captured()?;
    let _proxy = serve(fixture.as_proxy(), "[::]:15006", "proxy")?;
    let stranger = fixture.stranger()?;
    for called in ["10.3.0.1:9080", "[fd00:3::1]:9080"] {
        let seen = stranger.visit(at(called))??;
        assert_eq!(seen.original_dst, Some(at(called)));
    }
    Ok(())
}

/// Prints what `getsockopt` says to buffers of several sizes, in hexadecimal digits or as an error
/// number: `app` has room for the right size only.
const ASK: &str = r#"
import os, socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
print("ready", flush=True)
connection, _ = listener.accept()
for level, size in ((0, 4), (0, 15), (0, 16), (0, 64), (41, 16), (41, 27), (41, 28)):
    try: print(connection.getsockopt(level, 80, size).hex(), flush=True)
    except OSError as error: print(error.errno, flush=True)
"#;

/// What [`ASK`] prints of a connection to `destination` that ends up on `port`.
fn ask(place: Place<'_>, port: u16, app: &Probe, destination: &str) -> anyhow::Result<Vec<String>> {
    let mut python = place
        .command("python3")
        .args(["-c", ASK, &port.to_string(), &PROXY_UID.to_string()])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(python.stdout.take().context("no stdout")?).lines();
    assert_eq!(lines.next().context("python3 has ended")??, "ready");
    let connection = app.connect(at(destination))?;
    if connection.is_err() {
        python.kill()?;
    }
    let answers = lines.collect::<Result<_, _>>();
    python.wait()?;
    let _ = connection?;
    Ok(answers?)
}

#[test]
fn a_buffer_too_small_keeps_the_kernels_own_error() -> anyhow::Result<()> {
    require_root!();
    if !Command::new("python3")
        .arg("-V")
        .output()
        .is_ok_and(|python| python.status.success())
    {
        skip!("python3");
    }
    let fixture = captured()?;
    let own = ask(
        fixture.outside(),
        9999,
        &fixture.stranger()?,
        "127.0.0.1:9999",
    )?;
    let told = ask(fixture.inside(), 15001, &fixture.app()?, "10.1.0.1:80")?;
    let v4 = "020000500a0100010000000000000000";
    let v6 = "0a0000500000000000000000000000000000ffff0a01000100000000";
    let expected = [&own[0], &own[1], v4, v4, &own[4], &own[5], v6];
    assert_eq!(told, expected);
    Ok(())
}

#[test]
fn the_proxys_own_connections_pass() -> anyhow::Result<()> {
    require_root!();
    let fixture = captured()?;
    let _server = fixture.serve("[::]:80")?;
    let own = Probe::start(fixture.as_proxy())?;
    for destination in [
        at("10.1.0.1:80"),
        at("[fd00:1::1]:80"),
        mapped(at("10.1.0.1:80")),
    ] {
        assert_eq!(reached(&own.visit(destination)??)?, canonical(destination));
    }
    assert_eq!(fixture.outbound(Reason::ProxyOwn)?, 3);
    Ok(())
}

/// A proxy with a cgroup of its own, below the workload's or apart from it, is known whatever its
/// uid, and its listeners are found.
#[test]
fn a_proxy_is_known_by_its_cgroup() -> anyhow::Result<()> {
    require_root!();
    for below in [true, false] {
        let (cgroup, netns) = (Cgroup::new("workload")?, namespace()?);
        let apart = if below {
            cgroup.child("proxy")?
        } else {
            Cgroup::new("proxy")?
        };
        let as_proxy = Place::here().netns(&netns).cgroup(&apart).user(4242, 4242);
        let _proxies = [
            serve(as_proxy, "[::]:15001", "proxy")?,
            // Before anything is attached.
            serve(as_proxy, "127.0.0.1:15006", "proxy")?,
        ];
        let outside = Place::here().netns(&netns);
        let _server = serve(outside, "0.0.0.0:80", "server")?;
        let mut loaded = Loaded::new()?;
        let workload = loaded.attach_with_proxy(&cgroup, Some(&apart), &netns)?;
        let plan = Planner::new()
            .proxied()
            .outbound_default(proxy())
            .inbound("0.0.0.0:9080", proxy())
            .listens(15006);
        loaded.follow(workload, plan.build())?;

        let seen = Probe::start(outside.cgroup(&cgroup))?.visit(at("10.1.0.1:80"))??;
        assert_eq!(seen.original_dst, Some(at("10.1.0.1:80")), "below: {below}");
        let seen = Probe::start(as_proxy)?.visit(at("10.1.0.1:80"))??;
        assert_eq!(
            (seen.name.as_str(), reached(&seen)?),
            ("server", at("10.1.0.1:80"))
        );
        let own = loaded.counted(
            workload,
            sidecar_common::decide::Direction::Outbound,
            Reason::ProxyOwn,
        )?;
        assert_eq!(own, 1, "below: {below}");
        let seen = Probe::start(outside)?.visit(at("10.3.0.1:9080"))??;
        assert_eq!(
            seen.original_dst,
            Some(at("10.3.0.1:9080")),
            "below: {below}"
        );
    }
    Ok(())
}
