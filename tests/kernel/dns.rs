//! sendmsg, recvmsg, connect: DNS by UDP is the proxy's, and the answer comes from who was asked.

use std::{
    net::{SocketAddr, UdpSocket},
    thread,
};

use anyhow::Context as _;
use sidecar_common::{Path, Reason};
use sidecar_tests::{
    DEADLINE, Kind, Probe,
    apps::wire::{canonical, mapped},
    poll::poll_result,
    require_root,
};

use crate::{
    fixture::Fixture,
    plan::{Planner, at, proxy, rule},
};

const EVERYWHERE: [&str; 2] = ["0.0.0.0/0", "::/0"];

/// A workload whose DNS is captured; of all its names servers, those of `nets`.
fn captured(nets: &[&str]) -> anyhow::Result<Fixture> {
    Fixture::of_pod(Planner::new().proxied().outbound_default(proxy()).dns(nets))
}

/// A name server that answers to each question from whom it came.
pub fn answering<T>(
    fixture: &Fixture,
    address: &str,
    closure: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let address = at(address);
    let server = fixture.netns.run(|| UdpSocket::bind(address))??;
    server.set_read_timeout(Some(DEADLINE))?;
    let stop = fixture.netns.run(|| UdpSocket::bind((address.ip(), 0)))??;
    let done = thread::scope(|scope| {
        scope.spawn(|| {
            let mut question = [0; 64];
            while let Ok((length, client)) = server.recv_from(&mut question) {
                if &question[..length] == b"stop" {
                    break;
                }
                let question = String::from_utf8_lossy(&question[..length]);
                let answer = format!("{question} from {}", canonical(client).ip());
                let _ = server.send_to(answer.as_bytes(), client);
            }
        });
        let done = closure();
        stop.send_to(b"stop", address)?;
        done
    })?;
    // A process that another test has just forked still has the socket until it execs.
    drop(server);
    poll_result(DEADLINE, "the name server to be gone", || {
        fixture
            .netns
            .run(|| UdpSocket::bind(address))?
            .map_err(Into::into)
    })?;
    Ok(done)
}

/// Asks on a socket that is not connected.
pub fn ask(client: &Probe, kind: Kind, server: SocketAddr) -> anyhow::Result<(String, SocketAddr)> {
    let socket = client.socket(kind)??;
    socket.send_to("who", server)??;
    Ok(socket.receive()??)
}

/// Asks on a connected socket.
pub fn ask_connected(
    client: &Probe,
    kind: Kind,
    server: SocketAddr,
) -> anyhow::Result<(String, SocketAddr)> {
    let socket = client.socket(kind)??;
    socket.connect(server)??;
    assert_eq!(socket.peer()??, server);
    socket.send_to("who", server)??;
    Ok(socket.receive()??)
}

#[test]
fn the_answer_comes_from_who_was_asked() -> anyhow::Result<()> {
    require_root!();
    let fixture = captured(&EVERYWHERE)?;
    let app = fixture.app()?;
    for (proxy, servers) in [
        (
            "127.0.0.1:15053",
            vec![
                (Kind::Udp4, at("10.96.0.10:53"), "10.244.1.5"),
                (Kind::Udp4, at("192.168.50.1:53"), "192.168.50.5"),
                (Kind::Udp4, at("127.0.0.53:53"), "127.0.0.1"),
                (Kind::Udp4, at("10.244.1.5:53"), "10.244.1.5"),
                (Kind::Udp6, mapped(at("10.96.0.10:53")), "10.244.1.5"),
            ],
        ),
        (
            "[::1]:15053",
            vec![
                (Kind::Udp6, at("[fd00:96::10]:53"), "fd00:244::5"),
                (Kind::Udp6, at("[fd00:50::1]:53"), "fd00:50::5"),
                (Kind::Udp6, at("[::1]:53"), "::1"),
            ],
        ),
    ] {
        answering(&fixture, proxy, || {
            for (kind, server, from) in servers {
                for ask in [ask, ask_connected] {
                    let (answer, sender) = ask(&app, kind, server).context(server)?;
                    assert_eq!(sender, server);
                    assert_eq!(answer, format!("who from {from}"), "{server}");
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn one_socket_may_ask_several_servers() -> anyhow::Result<()> {
    require_root!();
    let fixture = captured(&EVERYWHERE)?;
    let app = fixture.app()?;
    answering(&fixture, "127.0.0.1:15053", || {
        let socket = app.socket(Kind::Udp4)??;
        for server in ["10.96.0.10:53", "8.8.8.8:53", "10.96.0.10:53"] {
            socket.send_to("who", at(server))??;
            assert_eq!(socket.receive()??.1, at(server));
        }
        // A datagram of somebody else is not taken for an answer.
        let (sender, own) = (app.socket(Kind::Udp4)??, socket.local()??);
        sender.bind(at("127.0.0.1:0"))??;
        let own = SocketAddr::new(at("127.0.0.1:0").ip(), own.port());
        sender.send_to("hello", own)??;
        assert_eq!(socket.receive()??, ("hello".to_owned(), sender.local()??));
        Ok(())
    })
}

#[test]
fn only_dns_to_those_servers_is_captured_and_never_the_proxys_own() -> anyhow::Result<()> {
    require_root!();
    let fixture = captured(&["10.244.1.5/32"])?;
    let own = Probe::start(fixture.as_proxy())?;
    let app = fixture.app()?;
    // What is not captured gets to whom it was sent.
    for (client, server) in [
        (&app, "192.168.50.5:53"),
        (&app, "10.244.1.5:5353"),
        (&app, "127.0.0.1:53"),
        (&own, "10.244.1.5:53"),
    ] {
        answering(&fixture, server, || {
            assert_eq!(ask(client, Kind::Udp4, at(server))?.1, at(server));
            assert_eq!(ask_connected(client, Kind::Udp4, at(server))?.1, at(server));
            Ok(())
        })
        .context(server)?;
    }
    answering(&fixture, "127.0.0.1:15053", || {
        ask(&app, Kind::Udp4, at("10.244.1.5:53")).map(drop)
    })?;
    assert_eq!(fixture.outbound(Reason::Dns)?, 1);
    // Two datagrams and one connect.
    assert_eq!(fixture.outbound(Reason::ProxyOwn)?, 3);
    Ok(())
}

#[test]
fn an_excluded_port_53_is_not_captured() -> anyhow::Result<()> {
    require_root!();
    let excluded = sidecar_common::values::Rule {
        flags: sidecar_common::values::Rule::FIRST,
        ..rule(Path::Pass, Reason::ExcludedPort)
    };
    let mut fixture = captured(&EVERYWHERE)?;
    let plan = Planner::new()
        .proxied()
        .outbound_default(proxy())
        .dns(&["::/0"])
        .prefix(53, "0.0.0.0/0", excluded);
    fixture.follow(plan)?;
    let app = fixture.app()?;
    answering(&fixture, "10.244.1.5:53", || {
        assert_eq!(
            ask(&app, Kind::Udp4, at("10.244.1.5:53"))?.1,
            at("10.244.1.5:53")
        );
        Ok(())
    })?;
    assert_eq!(fixture.outbound(Reason::ExcludedPort)?, 1);
    Ok(())
}
