//! Listeners come and go, limits are reached, the engine stops.

use std::{
    io::{ErrorKind, Write},
    net::TcpListener,
    num::NonZeroUsize,
    os::fd::{AsRawFd, OwnedFd},
    process::Command,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, setrlimit};
use sidecar_agent::relay::{
    Accepted, Cause, ListenerSpec, Namespaces, Route, Routes, SocketName, Way, listen::Listening,
};

use crate::support::{
    Name, Server, connect_through, engine, engine_with, eventually, fresh_name, lead_to, loopback,
    serve,
};

#[test]
fn removed_listeners_leave_live_connections_alone() {
    let (engine, server) = (engine(), Server::unix(fresh_name()));
    let (id, relay) = serve(&engine, loopback(), lead_to([server.name().target()]));
    let mut pairs: Vec<_> = (0..10).map(|_| connect_through(&relay, &server)).collect();
    drop(engine.remove(id).unwrap());
    assert_eq!(
        relay.connect().unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
    assert!(engine.remove(id).is_none());
    for (client, accepted) in &mut pairs {
        client.write_all(b"alive").unwrap();
        assert_eq!(accepted.receive(5), b"alive");
        accepted.write_all(b"yes").unwrap();
        assert_eq!(client.receive(3), b"yes");
    }
    assert_eq!(engine.stats().active, 10);
}

#[test]
fn connections_in_the_backlog_are_served_before_a_listener_goes() {
    struct Stalling(Barrier, AtomicBool, Route);
    impl Routes for Stalling {
        fn route(&self, _: &Accepted<'_>) -> Way {
            if !self.1.swap(true, Ordering::Relaxed) {
                self.0.wait();
                self.0.wait();
            }
            self.2.clone().into()
        }
    }

    let engine = engine_with(|config| config.threads = NonZeroUsize::MIN);
    let server = Server::tcp();
    let route = Route::Dial([server.name().target()].into());
    let routes = Arc::new(Stalling(Barrier::new(2), AtomicBool::new(false), route));
    let (id, relay) = serve(&engine, loopback(), routes.clone());
    let first = relay.connect().unwrap();
    routes.0.wait();
    let others: Vec<_> = (0..10).map(|_| relay.connect().unwrap()).collect();
    std::thread::scope(|scope| {
        let remover = std::thread::Builder::new().name("remover".into());
        let remover = remover
            .spawn_scoped(scope, || drop(engine.remove(id)))
            .unwrap();
        eventually("the remover waits for the engine", || sleeps("remover"));
        routes.0.wait();
        remover.join().unwrap();
    });
    assert_eq!(engine.stats().accepted, 11);
    for client in [first].into_iter().chain(others) {
        drop((server.accept(), client));
    }
}

/// Whether the thread of that name sleeps.
fn sleeps(name: &str) -> bool {
    std::fs::read_dir("/proc/self/task")
        .unwrap()
        .flatten()
        .any(|task| {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.contains(&format!("({name}) S "))
        })
}

#[test]
fn a_listener_is_handed_to_another_engine() {
    let server = Server::tcp();
    let target = server.name().target();
    let old = engine();
    let (id, relay) = serve(&old, loopback(), lead_to([target.clone()]));
    let (mut client, mut accepted) = connect_through(&relay, &server);
    let socket = old.remove(id).unwrap().release();
    assert!(
        !is_watched(&socket),
        "the old engine would wake for connections that are not its own"
    );
    // Between the two a client waits in the backlog.
    let mut waiting = relay.connect().unwrap();
    waiting.write_all(b"wait").unwrap();
    let new = engine();
    serve(&new, Listening::adopt(socket), lead_to([target]));
    assert_eq!(server.accept().receive(4), b"wait");
    client.write_all(b"old").unwrap();
    assert_eq!(accepted.receive(3), b"old");
    assert_eq!((old.stats().accepted, new.stats().accepted), (1, 1));
}

/// Whether an epoll instance of this process watches `socket` (`tfd:` in its fdinfo).
fn is_watched(socket: &OwnedFd) -> bool {
    let entry = socket.as_raw_fd().to_string();
    let mut infos = std::fs::read_dir("/proc/self/fdinfo").unwrap().flatten();
    infos.any(|info| {
        // Descriptors of other tests come and go.
        let text = std::fs::read_to_string(info.path()).unwrap_or_default();
        text.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some("tfd:") && words.next() == Some(&entry)
        })
    })
}

#[test]
fn connections_beyond_the_limit_are_reset() {
    let engine = engine_with(|config| config.max_connections = 4);
    let server = Server::tcp();
    let (_, relay) = serve(&engine, loopback(), lead_to([server.name().target()]));
    let mut pairs: Vec<_> = (0..4).map(|_| connect_through(&relay, &server)).collect();
    let mut fifth = relay.connect().unwrap();
    assert_eq!(
        fifth.receive_until_broken(),
        (vec![], Some(ErrorKind::ConnectionReset))
    );
    assert_eq!(engine.stats().limited, 1);
    pairs.pop();
    eventually("there is room", || engine.stats().active == 3);
    connect_through(&relay, &server);
}

#[test]
fn connections_are_spread_over_threads() {
    // Seen from outside only by the names of the threads that asked for routes.
    use std::{collections::BTreeMap, sync::Mutex};

    struct Noting(Mutex<BTreeMap<String, usize>>, Route);
    impl Routes for Noting {
        fn route(&self, accepted: &Accepted<'_>) -> Way {
            assert!(
                matches!(accepted.peer(), Ok(SocketName::Tcp(peer)) if peer.ip().is_loopback())
            );
            let thread = std::thread::current().name().unwrap().to_owned();
            *self.0.lock().unwrap().entry(thread).or_default() += 1;
            self.1.clone().into()
        }
    }

    let (engine, server) = (engine(), Server::tcp());
    let route = Route::Dial([server.name().target()].into());
    let routes = Arc::new(Noting(Mutex::default(), route));
    let (_, relay) = serve(&engine, loopback(), routes.clone());
    let _pairs: Vec<_> = (0..20).map(|_| connect_through(&relay, &server)).collect();
    let noted = routes.0.lock().unwrap().clone();
    assert_eq!(
        noted.into_iter().collect::<Vec<_>>(),
        [("relay-0".into(), 10), ("relay-1".into(), 10)]
    );
}

#[test]
fn shutdown_waits_and_then_resets() {
    let server = Server::tcp();
    let start = || {
        let engine = engine();
        let (_, relay) = serve(&engine, loopback(), lead_to([server.name().target()]));
        let pair = connect_through(&relay, &server);
        (engine, relay, pair)
    };

    // The last connection ends in time.
    let (engine, relay, (mut client, mut accepted)) = start();
    let stopping = std::thread::spawn(move || engine.shutdown(Duration::from_hours(1)));
    let Name::Tcp(address) = relay else {
        unreachable!()
    };
    eventually("the listener is closed", || {
        TcpListener::bind(address).is_ok()
    });
    client.write_all(b"draining").unwrap();
    assert_eq!(accepted.receive(8), b"draining");
    drop((client, accepted));
    eventually("the engine has stopped", || stopping.is_finished());
    assert_eq!(stopping.join().unwrap(), 0);

    // It does not.
    let (engine, _, (mut client, mut accepted)) = start();
    assert_eq!(engine.shutdown(Duration::from_millis(50)), 1);
    assert_eq!(
        client.receive_until_broken().1,
        Some(ErrorKind::ConnectionReset)
    );
    assert_eq!(
        accepted.receive_until_broken().1,
        Some(ErrorKind::ConnectionReset)
    );

    // Nobody is asked.
    let (engine, _, (mut client, _accepted)) = start();
    drop(engine);
    assert_eq!(
        client.receive_until_broken().1,
        Some(ErrorKind::ConnectionReset)
    );
}

#[test]
fn what_does_not_listen_is_not_served() {
    let engine = engine();
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let spec = ListenerSpec {
        socket: Listening::adopt(socket.into()),
        namespaces: Namespaces::default(),
        routes: lead_to([]),
    };
    let error = engine.add(spec).unwrap_err();
    assert!(matches!(error.cause, Cause::Unusable(_)), "{error}");
}

/// Set in the environment of the process that runs out of descriptors.
const CHILD: &str = "RELAY_TEST_OUT_OF_DESCRIPTORS";

#[test]
fn out_of_descriptors() {
    if std::env::var_os(CHILD).is_some() {
        return run_out_of_descriptors();
    }
    // The limit is the process's: a process of its own.
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "life::out_of_descriptors", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn run_out_of_descriptors() {
    // Accepted in a thread that shares our descriptors: the sockets of clients and servers count.
    let (engine, server) = (engine(), Server::tcp());
    let (_, relay) = serve(&engine, loopback(), lead_to([server.name().target()]));
    let (mut client, mut accepted) = connect_through(&relay, &server);
    let Name::Tcp(address) = relay else {
        unreachable!()
    };
    let mut waiting = std::net::TcpStream::connect(address).unwrap();
    let mut waiting_server = server.accept();

    // Two clients' worth of descriptors, taken by a client and nobody.
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let most = u64::try_from(free.as_raw_fd()).unwrap() + 1;
    drop(free);
    let limit = Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    setrlimit(Resource::Nofile, limit).unwrap();
    let mut starved = std::net::TcpStream::connect(address).unwrap();
    starved.write_all(b"at last").unwrap();
    let since = Instant::now();
    eventually("accepting fails, five times", || {
        engine.stats().accept_errors >= 5
    });
    // It pauses in between (100 ms), and serves who is there.
    assert!(since.elapsed() > Duration::from_millis(350), "it spins");
    waiting.write_all(b"served").unwrap();
    assert_eq!(waiting_server.receive(6), b"served");
    client.write_all(b"too").unwrap();
    assert_eq!(accepted.receive(3), b"too");
    // Room again: the next in line is served.
    drop((client, accepted, waiting, waiting_server));
    assert_eq!(server.accept().receive(7), b"at last");
}
