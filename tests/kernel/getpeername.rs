//! getpeername4, getpeername6: the application sees the address that it asked for.

use rustix::io::Errno;
use sidecar_tests::{Kind, apps::wire::mapped, require_root, skip};

use crate::{
    fixture::{Fixture, reached},
    plan::{Planner, at, deny, direct, proxy, relay},
};

#[test]
fn the_peer_is_who_was_asked_for_whatever_the_path() -> anyhow::Result<()> {
    require_root!();
    let plan = Planner::new()
        .proxied()
        .outbound("10.1.0.1:80", direct("10.9.0.1:8080"))
        .outbound("[fd00:1::1]:80", direct("[fd00:9::1]:8080"))
        .outbound("[fd00:1::4]:80", direct("10.9.0.1:8080"))
        .prefix(0, "10.2.0.0/16", proxy())
        .prefix(0, "fd00:2::/32", proxy())
        .prefix(0, "10.3.0.0/16", relay());
    let mut fixture = Fixture::new(plan)?;
    let _relay = fixture.relay()?;
    let _servers = [fixture.serve("[::]:8080")?, fixture.serve("[::]:15001")?];
    let app = fixture.app()?;
    for asked in [
        at("10.1.0.1:80"),
        at("10.2.0.1:80"),
        at("10.3.0.1:80"),
        at("[fd00:1::1]:80"),
        at("[fd00:1::4]:80"),
        at("[fd00:2::1]:80"),
        mapped(at("10.1.0.1:80")),
        mapped(at("10.2.0.1:80")),
        mapped(at("10.3.0.1:80")),
    ] {
        assert_eq!(app.connect(asked)??.peer()??, asked);
    }
    Ok(())
}

#[test]
fn an_untouched_socket_sees_its_peer() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::new(Planner::new().outbound("10.1.0.1:80", direct("10.9.0.1:80")))?;
    let _server = fixture.serve("[::]:80")?;
    let app = fixture.app()?;
    for asked in [
        at("10.1.0.2:80"),
        at("[fd00:1::1]:80"),
        mapped(at("10.1.0.2:80")),
    ] {
        assert_eq!(app.connect(asked)??.peer()??, asked);
    }
    assert_eq!(app.socket(Kind::Tcp4)??.peer()?, Err(Errno::NOTCONN));
    assert_eq!(app.socket(Kind::Tcp6)??.peer()?, Err(Errno::NOTCONN));
    Ok(())
}

/// An accepted socket has never asked for anything.
#[test]
fn a_server_of_the_workload_sees_its_client() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::new(Planner::new().outbound("10.1.0.1:80", direct("10.9.0.1:8080")))?;
    let _server = crate::fixture::serve(fixture.inside(), "0.0.0.0:8080", "app")?;
    let app = fixture.app()?;
    let socket = app.connect(at("10.1.0.1:80"))??;
    assert_eq!(socket.banner()??.peer, Some(socket.local()??));
    Ok(())
}

#[test]
fn a_socket_used_again_does_not_answer_for_its_first_use() -> anyhow::Result<()> {
    require_root!();
    let plan = Planner::new()
        .outbound("10.1.0.1:80", direct("10.9.0.1:80"))
        .outbound("10.1.0.2:80", direct("10.9.0.2:80"))
        .outbound("[fd00:1::1]:80", direct("[fd00:9::1]:80"))
        .outbound("10.1.0.3:80", deny());
    let mut fixture = Fixture::new(plan)?;
    let _server = fixture.serve("[::]:80")?;
    let app = fixture.app()?;

    let socket = app.connect(at("10.1.0.1:80"))??;
    for (next, target) in [
        ("10.7.0.1:80", "10.7.0.1:80"),
        ("10.1.0.1:80", "10.9.0.1:80"),
        ("10.1.0.2:80", "10.9.0.2:80"),
        ("10.9.0.2:80", "10.9.0.2:80"),
    ] {
        socket.disconnect()??;
        assert_eq!(socket.peer()?, Err(Errno::NOTCONN));
        socket.connect(at(next))??;
        assert_eq!(socket.peer()??, at(next));
        assert_eq!(reached(&socket.banner()??)?, at(target));
    }

    let socket = app.connect(at("[fd00:1::1]:80"))??;
    for next in [
        at("[fd00:7::1]:80"),
        mapped(at("10.7.0.1:80")),
        mapped(at("10.1.0.1:80")),
    ] {
        socket.disconnect()??;
        socket.connect(next)??;
        assert_eq!(socket.peer()??, next);
    }

    let socket = app.connect(at("10.1.0.1:80"))??;
    socket.disconnect()??;
    assert_eq!(socket.connect(at("10.1.0.3:80"))?, Err(Errno::CONNREFUSED));
    fixture.loaded.dataplane.release(fixture.workload)?;
    socket.connect(at("10.1.0.3:80"))??;
    assert_eq!(
        socket.peer()??,
        at("10.1.0.3:80"),
        "redirected, refused, and then let pass"
    );
    Ok(())
}

/// The hooks see the subflow, getpeername sees the Multipath TCP socket above it.
#[test]
fn multipath_tcp_sees_where_it_was_led() -> anyhow::Result<()> {
    require_root!();
    let fixture = Fixture::new(Planner::new().outbound("10.1.0.1:80", direct("10.9.0.1:80")))?;
    let _server = fixture.serve("0.0.0.0:80")?;
    let app = fixture.app()?;
    let socket = match app.socket(Kind::Mptcp4)? {
        Ok(socket) => socket,
        Err(errno) => skip!("Multipath TCP: {errno}"),
    };
    socket.connect(at("10.1.0.1:80"))??;
    assert_eq!(socket.peer()??, at("10.9.0.1:80"));
    Ok(())
}
