//! Targets: refused, missing, late, the next one; the original destination.

use std::{
    io::{ErrorKind, Write},
    net::{SocketAddr, TcpListener},
    os::unix::{ffi::OsStrExt, fs::symlink},
    path::Path,
    sync::Arc,
    time::Duration,
};

use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    net::{AddressFamily, SocketAddrUnix, SocketType, accept, bind, connect, listen, socket},
};
use sidecar_agent::{
    compile::{Target, UnixAddr},
    relay::{Engine, FailedDials, Namespaces, Route, Stats},
};

use crate::support::{
    Always, Name, Server, connect_through, engine, engine_with, eventually, fresh_name, lead_to,
    loopback, path_of, serve, serve_in,
};

/// A port nobody listens on: of a listener that has gone.
fn dead_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

/// Connects, and expects a reset; the engine's numbers then.
fn expect_reset(engine: &Engine, relay: &Name) -> Stats {
    let mut client = relay.connect().unwrap();
    assert_eq!(
        client.receive_until_broken(),
        (vec![], Some(ErrorKind::ConnectionReset))
    );
    eventually("the connection is forgotten", || engine.stats().active == 0);
    engine.stats()
}

#[test]
fn without_a_target_the_client_is_reset() {
    let dir = tempfile::tempdir().unwrap();
    let none = FailedDials::default();
    for (targets, expected) in [
        (
            vec![Target::Tcp(dead_port())],
            FailedDials { refused: 1, ..none },
        ),
        (
            vec![Target::Unix(path_of(&dir.path().join("nothing")))],
            FailedDials { missing: 1, ..none },
        ),
        (
            vec![Target::Unix(fresh_name())],
            FailedDials { refused: 1, ..none },
        ),
        (
            vec![Target::Unix(UnixAddr::Abstract("too long".repeat(14)))],
            FailedDials { other: 1, ..none },
        ),
        (vec![], FailedDials { other: 1, ..none }),
        (vec![Target::Original], FailedDials { other: 1, ..none }),
    ] {
        let engine = engine();
        let (_, relay) = serve(&engine, loopback(), lead_to(targets.clone()));
        let stats = expect_reset(&engine, &relay);
        assert_eq!((stats.accepted, stats.failed), (1, expected), "{targets:?}");
    }
}

#[test]
fn a_refused_route_resets_the_client() {
    let engine = engine();
    let (_, relay) = serve(&engine, loopback(), Arc::new(Always(Route::Refuse)));
    let stats = expect_reset(&engine, &relay);
    assert_eq!((stats.refused, stats.failed.total()), (1, 0));
}

#[test]
fn the_next_target_is_tried() {
    let (engine, server) = (engine(), Server::tcp());
    let targets = [
        Target::Tcp(dead_port()),
        Target::Unix(fresh_name()),
        Target::Unix(UnixAddr::Path("/nonexistent/socket".into())),
        server.name().target(),
    ];
    let (_, relay) = serve(&engine, loopback(), lead_to(targets));
    let (mut client, mut accepted) = connect_through(&relay, &server);
    client.write_all(b"hello").unwrap();
    assert_eq!(accepted.receive(5), b"hello");
    assert_eq!(engine.stats().failed.total(), 0);
}

/// The last of them is where the client was going: only that is counted as such.
#[test]
fn where_the_client_was_going_is_the_last_resort() {
    let elsewhere = Server::tcp();
    let (one, original) = (Server::tcp(), elsewhere.name().target());
    for (first, server, fell_back) in [
        (one.name().target(), &one, 0),
        (Target::Tcp(dead_port()), &elsewhere, 1),
    ] {
        let engine = engine();
        let route = Route::DialElse([first, original.clone()].into());
        let (_, relay) = serve(&engine, loopback(), Arc::new(Always(route)));
        let (mut client, mut accepted) = connect_through(&relay, server);
        client.write_all(b"hello").unwrap();
        assert_eq!(accepted.receive(5), b"hello");
        assert_eq!(engine.stats().fell_back, fell_back);
    }
    let engine = engine();
    let route = Route::DialElse([(); 2].map(|()| Target::Tcp(dead_port())).into());
    let (_, relay) = serve(&engine, loopback(), Arc::new(Always(route)));
    let stats = expect_reset(&engine, &relay);
    assert_eq!((stats.fell_back, stats.failed.refused), (0, 1));
}

/// A TCP listener whose backlog is full, so that it answers no further connection; and what fills
/// it.
fn silent() -> (SocketAddr, impl Sized) {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    listen(&socket, 0).unwrap();
    let listener = TcpListener::from(socket);
    let address = listener.local_addr().unwrap();
    let filling = std::net::TcpStream::connect(address).unwrap();
    (address, (listener, filling))
}

#[test]
fn a_target_that_does_not_answer_is_given_up() {
    let (silent, _kept) = silent();
    let engine = engine_with(|config| config.dial_timeout = Duration::from_millis(200));
    let (_, relay) = serve(&engine, loopback(), lead_to([Target::Tcp(silent)]));
    assert_eq!(expect_reset(&engine, &relay).failed.timed_out, 1);

    let server = Server::tcp();
    let targets = [Target::Tcp(silent), server.name().target()];
    let (_, relay) = serve(&engine, loopback(), lead_to(targets));
    let (mut client, mut accepted) = connect_through(&relay, &server);
    client.write_all(b"late").unwrap();
    assert_eq!(accepted.receive(4), b"late");
}

#[test]
fn a_full_unix_backlog_is_waited_for() {
    let UnixAddr::Abstract(name) = fresh_name() else {
        unreachable!()
    };
    let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap();
    let new_socket = || socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    let full = new_socket();
    bind(&full, &address).unwrap();
    listen(&full, 0).unwrap();
    let filling = new_socket();
    connect(&filling, &address).unwrap();

    // Given up in the end,
    let target = Target::Unix(UnixAddr::Abstract(name));
    let engine = engine_with(|config| config.dial_timeout = Duration::from_millis(100));
    let (_, relay) = serve(&engine, loopback(), lead_to([target.clone()]));
    assert_eq!(expect_reset(&engine, &relay).failed.timed_out, 1);

    // and connected when there is room.
    let engine = crate::support::engine();
    let (_, relay) = serve(&engine, loopback(), lead_to([target]));
    let mut client = relay.connect().unwrap();
    client.write_all(b"patient").unwrap();
    eventually("the relay dials", || engine.stats().active == 1);
    drop(accept(&full).unwrap());
    let accepted = accept(&full).unwrap();
    let mut got = [0; 7];
    assert_eq!(rustix::io::read(&accepted, &mut got), Ok(7));
    assert_eq!(&got, b"patient");
}

#[test]
fn a_path_longer_than_an_address() {
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("d".repeat(120));
    std::fs::create_dir(&long).unwrap();
    // Bound by its short name, moved to the long one.
    let short = dir.path().join("short");
    let server = Server::unix(path_of(&short));
    std::fs::rename(&short, long.join("app.sock")).unwrap();

    let engine = engine();
    let target = Target::Unix(path_of(&long.join("app.sock")));
    let (_, relay) = serve(&engine, loopback(), lead_to([target]));
    let (mut client, mut accepted) = connect_through(&relay, &server);
    client.write_all(b"far").unwrap();
    assert_eq!(accepted.receive(3), b"far");
}

#[test]
fn no_symlink_leads_out_of_the_root() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir_all(root.join("run")).unwrap();
    let inside = Server::unix(path_of(&root.join("run/app.sock")));
    let outside = dir.path().join("outside.sock");
    let _outside = Server::unix(path_of(&outside));
    symlink(&outside, root.join("run/absolute")).unwrap();
    symlink("../../outside.sock", root.join("run/relative")).unwrap();
    symlink("/run/app.sock", root.join("alias")).unwrap();

    let open = |path: &Path| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(CWD, path.as_os_str().as_bytes(), flags, Mode::empty()).unwrap()
    };
    let namespaces = Namespaces {
        root: Some(Arc::new(open(&root))),
        net: None,
    };
    let relay_to = |engine: &Engine, path: &str| {
        let routes = lead_to([Target::Unix(UnixAddr::Path(path.into()))]);
        serve_in(engine, loopback(), routes, namespaces.clone()).1
    };
    for path in [
        "/run/app.sock",
        "run/app.sock",
        "/alias",
        "/../../run/app.sock",
    ] {
        let engine = engine();
        let (mut client, mut accepted) = connect_through(&relay_to(&engine, path), &inside);
        client.write_all(b"in").unwrap();
        assert_eq!(accepted.receive(2), b"in", "{path}");
    }
    for path in ["/run/absolute", "/run/relative", "/../outside.sock"] {
        let engine = engine();
        let relay = relay_to(&engine, path);
        assert_eq!(expect_reset(&engine, &relay).failed.missing, 1, "{path}");
    }
}

#[test]
fn the_original_destination() {
    // What sk_lookup does is not to be had here: the listener believes to be elsewhere.
    let (engine, server) = (engine(), Server::tcp());
    let Server::Tcp(listener) = &server else {
        unreachable!()
    };
    let adopted =
        sidecar_agent::relay::listen::Listening::adopt(listener.try_clone().unwrap().into());
    let (id, relay) = serve(&engine, adopted, lead_to([Target::Original]));
    // Its own address: refused, not a loop.
    assert_eq!(expect_reset(&engine, &relay).failed.other, 1);
    assert!(engine.remove(id).is_some());
}
