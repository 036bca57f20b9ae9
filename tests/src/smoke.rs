//! The harness at work.

use std::{
    io::{BufRead as _, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::{Command, Stdio},
};

use ipnet::IpNet;

use crate::{
    Cgroup, Client, DEADLINE, Dns, Mode, Namespace, Net, Place, Server, apps::wire::canonical,
    command::output, names, poll, programs, require_root,
};

/// `connect(2)` to a port that nobody listens on.
const ECONNREFUSED: i32 = 111;

fn net_of_two() -> Net {
    Net::new(&["client", "server"]).unwrap()
}

#[test]
fn hosts_reach_each_other_in_both_families() {
    require_root!();
    let net = net_of_two();
    let [client, host] = net.hosts() else {
        panic!("two hosts")
    };
    let server = Server::tcp("[::]:8080".parse().unwrap())
        .place(Place::here().netns(&host.netns))
        .name("b")
        .start()
        .unwrap();
    let port = server.address().port();
    for (address, source) in [
        (IpAddr::from(host.v4), IpAddr::from(client.v4)),
        (host.v6.into(), client.v6.into()),
    ] {
        let to = SocketAddr::new(address, port);
        let outcome = Client::tcp(to)
            .place(Place::here().netns(&client.netns))
            .banner()
            .unwrap();
        assert!(outcome.connected, "{outcome:?}");
        assert_eq!(outcome.peer, Some(to));
        let seen = outcome.banner.unwrap();
        assert_eq!(seen.name, "b");
        assert_eq!(canonical(seen.local.unwrap()), to);
        assert_eq!(canonical(seen.peer.unwrap()).ip(), source);
        assert_eq!(seen.original_dst, None, "nothing redirects");
    }
}

#[test]
fn a_port_nobody_listens_on_refuses() {
    require_root!();
    let net = net_of_two();
    let [client, host] = net.hosts() else {
        panic!("two hosts")
    };
    let to = SocketAddr::new(host.v4.into(), 8080);
    let client = Client::tcp(to).place(Place::here().netns(&client.netns));
    for (client, in_progress) in [(client.clone(), false), (client.non_blocking(), true)] {
        let outcome = client.connect().unwrap();
        assert_eq!(
            (outcome.connected, outcome.errno),
            (false, Some(ECONNREFUSED))
        );
        assert_eq!(outcome.in_progress, in_progress);
    }
}

#[test]
fn announced_addresses_lead_to_their_host() {
    require_root!();
    let net = net_of_two();
    let [client, host] = net.hosts() else {
        panic!("two hosts")
    };
    for range in ["198.51.100.0/24", "2001:db8:1::/48"] {
        net.announce(host, range.parse::<IpNet>().unwrap()).unwrap();
    }
    let _server = Server::tcp("[::]:80".parse().unwrap())
        .place(Place::here().netns(&host.netns))
        .start()
        .unwrap();
    for to in ["198.51.100.7:80", "[2001:db8:1::7]:80"] {
        let to: SocketAddr = to.parse().unwrap();
        let outcome = Client::tcp(to)
            .place(Place::here().netns(&client.netns))
            .banner()
            .unwrap();
        assert_eq!(canonical(outcome.banner.unwrap().local.unwrap()), to);
    }
}

#[test]
fn namespaces_are_apart_and_their_parameters_too() {
    require_root!();
    let (a, b) = (Namespace::new("a").unwrap(), Namespace::new("b").unwrap());
    assert_ne!(a.inode().unwrap(), b.inode().unwrap());
    let _server = Server::tcp("127.0.0.1:8080".parse().unwrap())
        .place(Place::here().netns(&a))
        .start()
        .unwrap();
    let to: SocketAddr = "127.0.0.1:8080".parse().unwrap();
    let connects = |netns: &Namespace| netns.run(|| std::net::TcpStream::connect(to).is_ok());
    assert!(connects(&a).unwrap());
    assert!(!connects(&b).unwrap());

    a.sysctl("net/ipv4/ip_default_ttl", "33").unwrap();
    let ttl = |netns: &Namespace| {
        netns.run(|| std::fs::read_to_string("/proc/sys/net/ipv4/ip_default_ttl").unwrap())
    };
    assert_eq!(ttl(&a).unwrap().trim(), "33");
    assert_ne!(ttl(&b).unwrap().trim(), "33");
    assert!(a.sysctl("net/ipv4/no_such_parameter", "1").is_err());
}

#[test]
fn a_program_is_in_its_cgroup_namespace_and_user_from_the_start() {
    require_root!();
    let cgroup = Cgroup::new("place").unwrap();
    let inner = cgroup.child("inner").unwrap();
    let netns = Namespace::new("place").unwrap();
    let place = Place::here()
        .netns(&netns)
        .cgroup(&inner)
        .user(65534, 65533);
    let text = output(place.command("sh").args([
        "-c",
        "cat /proc/self/cgroup; stat -L -c %i /proc/self/ns/net; id -u; id -g; id -G; echo $$",
    ]))
    .unwrap();
    let mut lines = text.lines().skip_while(|line| !line.starts_with("0::/"));
    let expected = inner.path().strip_prefix(Cgroup::root().unwrap()).unwrap();
    assert_eq!(lines.next().unwrap(), format!("0::/{}", expected.display()));
    assert_eq!(lines.next().unwrap(), netns.inode().unwrap().to_string());
    assert_eq!(lines.next().unwrap(), "65534");
    assert_eq!(lines.next().unwrap(), "65533");
    assert_eq!(lines.next().unwrap(), "65533", "no supplementary groups");
}

#[test]
fn servers_and_clients_run_where_they_are_put() {
    require_root!();
    let cgroup = Cgroup::new("apps").unwrap();
    let place = Place::here().cgroup(&cgroup).user(65534, 65534);
    let server = Server::tcp("127.0.0.1:0".parse().unwrap())
        .place(place)
        .mode(Mode::Echo)
        .start()
        .unwrap();
    let client = Client::tcp(server.address()).place(place).hold().unwrap();
    let mut pids = cgroup.pids().unwrap();
    pids.sort_unstable();
    let mut expected = [server.pid(), client.pid()];
    expected.sort_unstable();
    assert_eq!(pids, expected);
    let status = std::fs::read_to_string(format!("/proc/{}/status", client.pid())).unwrap();
    let uid = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .unwrap();
    assert!(uid.split_whitespace().all(|uid| uid == "65534"), "{uid}");
}

#[test]
fn bytes_arrive_whole_in_every_mode() {
    const BYTES: u64 = 3_000_000;
    let server = |mode| {
        Server::tcp("127.0.0.1:0".parse().unwrap())
            .mode(mode)
            .bytes(BYTES)
            .start()
            .unwrap()
    };
    let (echo, sink, source) = (server(Mode::Echo), server(Mode::Sink), server(Mode::Source));
    for (outcome, sent) in [
        (Client::tcp(echo.address()).echo(BYTES).unwrap(), BYTES),
        (
            Client::tcp(echo.address())
                .mapped()
                .non_blocking()
                .echo(BYTES)
                .unwrap(),
            BYTES,
        ),
        (Client::tcp(sink.address()).send(BYTES).unwrap(), BYTES),
        (Client::tcp(source.address()).receive(BYTES).unwrap(), 0),
    ] {
        let transfer = outcome.transfer.unwrap();
        assert_eq!(
            (transfer.sent, transfer.received, transfer.intact),
            (sent, BYTES, true)
        );
    }
    let wrong = Client::tcp(source.address()).receive(BYTES - 1).unwrap();
    assert!(
        !wrong.transfer.unwrap().intact,
        "a byte too many is noticed"
    );
}

#[test]
fn a_held_connection_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let server = Server::unix(&path).mode(Mode::Echo).start().unwrap();
    let mut held = Client::unix(&path).hold().unwrap();
    assert!(held.outcome().connected);
    assert_eq!(held.exchange("one").unwrap(), "one");
    assert_eq!(held.exchange("two").unwrap(), "two");
    drop(server);
    assert!(held.exchange("three").is_err());
}

#[test]
fn a_client_takes_the_address_it_is_told() {
    let server = Server::tcp("127.0.0.1:0".parse().unwrap()).start().unwrap();
    let source: SocketAddr = "127.0.0.9:0".parse().unwrap();
    for client in [
        Client::tcp(server.address()),
        Client::tcp(server.address()).mapped(),
    ] {
        let outcome = client.bind(source).banner().unwrap();
        assert_eq!(outcome.banner.unwrap().peer.unwrap().ip(), source.ip());
        assert_eq!(canonical(outcome.local.unwrap()).ip(), source.ip());
    }
}

#[test]
fn several_servers_share_a_port_if_all_want_to() {
    let first = Server::tcp("127.0.0.1:0".parse().unwrap())
        .reuse_port()
        .start()
        .unwrap();
    assert!(Server::tcp(first.address()).reuse_port().start().is_ok());
    assert!(Server::tcp(first.address()).start().is_err());
}

#[test]
fn the_name_server_answers_within_a_namespace() {
    require_root!();
    let netns = Namespace::new("dns").unwrap();
    let server = Dns::start(Some(&netns), "127.0.0.1:53".parse().unwrap()).unwrap();
    server.set(
        "a.test",
        &[
            Ipv4Addr::new(192, 0, 2, 1).into(),
            Ipv6Addr::LOCALHOST.into(),
        ],
    );
    assert_eq!(server.address().port(), 53);
    let reached = netns.run(|| {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(server.address()).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        // No question at all: the shortest there is to answer.
        socket.send(&[0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        let mut answer = [0; 12];
        socket.recv(&mut answer).unwrap();
        answer[1]
    });
    assert_eq!(reached.unwrap(), 7);
}

#[test]
fn what_was_made_is_gone_afterwards() {
    require_root!();
    let net = net_of_two();
    let cgroup = Cgroup::new("gone").unwrap();
    let child = cgroup.child("child").unwrap();
    let place = Place::here().netns(&net.hosts()[0].netns).cgroup(&child);
    let server = Server::tcp("127.0.0.1:0".parse().unwrap())
        .place(place)
        .start()
        .unwrap();
    let mut stranger = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let home = Cgroup::of(stranger.id()).unwrap();
    child.attach(stranger.id()).unwrap();
    // One that the harness knows nothing of.
    let mut straggler = place.command("cat").stdin(Stdio::piped()).spawn().unwrap();
    poll(DEADLINE, "the straggler to be there", || {
        child
            .pids()
            .unwrap()
            .contains(&straggler.id())
            .then_some(())
    })
    .unwrap();

    let mut paths = vec![cgroup.path().to_owned(), net.router().path().to_owned()];
    paths.extend(net.hosts().iter().map(|host| host.netns.path().to_owned()));
    assert!(paths.iter().all(|path| path.exists()));
    let pid = server.pid();

    drop((server, net));
    // The parent first: with what is below it.
    drop(cgroup);
    drop(child);
    assert!(paths.iter().all(|path| !path.exists()));
    assert!(!std::path::Path::new("/proc").join(pid.to_string()).exists());
    assert_eq!(straggler.wait().unwrap().code(), None, "killed");
    assert!(
        stranger.try_wait().unwrap().is_none(),
        "moved back and alive"
    );
    assert_eq!(Cgroup::of(stranger.id()).unwrap(), home);
    drop(stranger.stdin.take());
    stranger.wait().unwrap();
}

#[test]
fn an_interrupted_process_cleans_up() {
    require_root!();
    for (signal, cleans_up) in [("INT", true), ("TERM", true), ("KILL", false)] {
        let mut process = Command::new(programs::app().unwrap())
            .arg("linger")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut made = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut made)
            .unwrap();
        let paths: Vec<_> = made
            .split_whitespace()
            .map(std::path::PathBuf::from)
            .collect();
        assert!(paths.iter().all(|path| path.exists()), "{made}");
        output(Command::new("kill").args([&format!("-{signal}"), &process.id().to_string()]))
            .unwrap();
        let status = process.wait().unwrap();
        assert!(!status.success());
        assert!(
            paths.iter().all(|path| path.exists() != cleans_up),
            "{signal}: {made}"
        );
        let name = paths[0].file_name().unwrap().to_str().unwrap();
        assert!(names::is_orphan(name), "{name}");
        if !cleans_up {
            // As the first thing a later run makes would.
            for path in &paths {
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                assert!(names::orphans(path.parent().unwrap()).contains(&name));
            }
            crate::netns::remove_all_orphans();
            crate::cgroup::remove_all_orphans(paths[1].parent().unwrap());
            assert!(paths.iter().all(|path| !path.exists()), "{made}");
        }
    }
}
