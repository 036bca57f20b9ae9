//! Bytes arrive, all of them, in order, whatever the sockets; a slow reader stops the writer.

use std::{
    io::{ErrorKind, Write},
    thread,
    time::Duration,
};

use rustix::net::sockopt;
use sidecar_agent::relay::listen;

use crate::support::{
    Name, Server, Stream, check_pattern, connect_through, engine, eventually, fresh_name, lead_to,
    loopback, path_of, send_pattern, serve, unix_at,
};

/// A size that pipes, buffers and patterns do not divide.
const MUCH: usize = (64 << 20) + 12_345;

/// Echoes small messages, then sends much both ways at once.
fn exchange(mut client: Stream, mut server: Stream) {
    for question in [&b"a"[..], b"question", &[7; 1000]] {
        client.write_all(question).unwrap();
        assert_eq!(server.receive(question.len()), question);
        assert_eq!(server.write(question).unwrap(), question.len());
        assert_eq!(client.receive(question.len()), question);
    }
    let (mut client_out, mut server_out) = (client.another(), server.another());
    thread::scope(|scope| {
        scope.spawn(|| send_pattern(&mut client_out, 1, MUCH));
        scope.spawn(|| send_pattern(&mut server_out, 2, MUCH));
        let up = scope.spawn(|| check_pattern(&mut server, 1));
        let down = scope.spawn(|| check_pattern(&mut client, 2));
        assert_eq!((up.join().unwrap(), down.join().unwrap()), (MUCH, MUCH));
    });
}

fn relayed(socket: listen::Listening, server: &Server) {
    let engine = engine();
    let (_, relay) = serve(&engine, socket, lead_to([server.name().target()]));
    let (client, accepted) = connect_through(&relay, server);
    exchange(client, accepted);
    eventually("the connection is forgotten", || engine.stats().active == 0);
    let stats = engine.stats();
    let each = (MUCH + 1009) as u64;
    assert_eq!((stats.bytes_to_target, stats.bytes_to_client), (each, each));
    assert!(stats.bytes_spliced > each, "bulk was copied: {stats:?}");
    assert_eq!(
        (stats.accepted, stats.reset, stats.failed.total()),
        (1, 0, 0)
    );
}

#[test]
fn tcp_to_tcp() {
    relayed(loopback(), &Server::tcp());
}

#[test]
fn tcp_to_unix() {
    let dir = tempfile::tempdir().unwrap();
    relayed(
        loopback(),
        &Server::unix(path_of(&dir.path().join("app.sock"))),
    );
}

#[test]
fn unix_to_tcp() {
    let dir = tempfile::tempdir().unwrap();
    relayed(
        unix_at(&dir.path().join("relay.sock")).unwrap(),
        &Server::tcp(),
    );
}

#[test]
fn abstract_to_abstract() {
    let socket = listen::unix(None, &fresh_name(), listen::ANYBODY).unwrap();
    relayed(socket, &Server::unix(fresh_name()));
}

#[test]
fn small_messages_on_many_connections_are_copied() {
    const CONNECTIONS: usize = 500;
    let (engine, server) = (engine(), Server::unix(fresh_name()));
    let (_, relay) = serve(&engine, loopback(), lead_to([server.name().target()]));
    let mut pairs: Vec<_> = (0..CONNECTIONS)
        .map(|_| connect_through(&relay, &server))
        .collect();
    for round in 0..10_u8 {
        for (client, _) in &mut pairs {
            client.write_all(&[round; 100]).unwrap();
        }
        for (client, server) in &mut pairs {
            let question = server.receive(100);
            assert_eq!(question, [round; 100]);
            server.write_all(&question[..50]).unwrap();
            assert_eq!(client.receive(50), [round; 50]);
        }
    }
    let connections = CONNECTIONS as u64;
    assert_eq!(engine.stats().active, connections);
    // Counted just after they were delivered.
    eventually("all bytes are counted", || {
        let stats = engine.stats();
        (stats.bytes_to_target, stats.bytes_to_client) == (connections * 1000, connections * 500)
    });
    assert_eq!(engine.stats().bytes_spliced, 0);
    drop(pairs);
    eventually("all are forgotten", || engine.stats().active == 0);
}

/// Writes until the other side has stopped us; the bytes taken.
fn write_until_stopped(stream: &mut Stream, pattern: &[u8]) -> usize {
    stream.be_patient(Duration::from_millis(500));
    let mut taken = 0;
    loop {
        match stream.write(&pattern[taken % pattern.len()..]) {
            Ok(n) => taken += n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return taken,
            Err(error) => panic!("{error} after {taken} bytes"),
        }
    }
}

fn slow_reader(socket: listen::Listening, server: &Server) {
    // Accepted sockets take over these; what is left to grow is the relay's sending buffer (4 MiB,
    // `tcp_wmem`) and its pipe (1 MiB).
    sockopt::set_socket_recv_buffer_size(&socket, 1 << 16).unwrap();
    sockopt::set_socket_recv_buffer_size(server, 1 << 16).unwrap();
    let engine = engine();
    let (_, relay) = serve(&engine, socket, lead_to([server.name().target()]));
    let (mut client, mut accepted) = connect_through(&relay, server);
    sockopt::set_socket_send_buffer_size(&client, 1 << 16).unwrap();
    let taken = write_until_stopped(&mut client, &crate::support::pattern(3));
    assert!(
        taken <= 8 << 20,
        "{taken} bytes taken from a writer whose reader does not read"
    );
    // The other direction does not mind.
    accepted.write_all(b"still here").unwrap();
    assert_eq!(client.receive(10), b"still here");
    client.end();
    assert_eq!(check_pattern(&mut accepted, 3), taken);
}

#[test]
fn a_slow_reader_stops_the_writer_tcp() {
    slow_reader(loopback(), &Server::tcp());
}

#[test]
fn a_slow_reader_stops_the_writer_unix() {
    let socket = listen::unix(None, &fresh_name(), listen::ANYBODY).unwrap();
    slow_reader(socket, &Server::unix(fresh_name()));
}

#[test]
fn urgent_data_does_not_stop_the_stream() {
    let (engine, server) = (engine(), Server::tcp());
    let (_, relay) = serve(&engine, loopback(), lead_to([server.name().target()]));
    let Name::Tcp(address) = relay else {
        unreachable!()
    };
    // Before the relay has a target, so that all of it is there at the first read.
    let mut client = Stream::Tcp(std::net::TcpStream::connect(address).unwrap());
    let (before, after) = (vec![1; 100_000], vec![2; 100_000]);
    client.write_all(&before).unwrap();
    rustix::net::send(&client, b"!", rustix::net::SendFlags::OOB).unwrap();
    client.write_all(&after).unwrap();
    let mut accepted = server.accept();
    let got = accepted.receive(200_000);
    assert!(got == [before, after].concat());
    client.write_all(b"more").unwrap();
    assert_eq!(accepted.receive(4), b"more");
}

#[test]
fn a_descriptor_passed_along_does_not_stop_the_stream() {
    use std::{io::IoSlice, mem::MaybeUninit, os::fd::AsFd};

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    let (engine, server) = (engine(), Server::tcp());
    let socket = listen::unix(None, &fresh_name(), listen::ANYBODY).unwrap();
    let (_, relay) = serve(&engine, socket, lead_to([server.name().target()]));
    let mut client = relay.connect().unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let descriptor = std::io::stderr();
    for _ in 0..50 {
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [descriptor.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        sendmsg(
            &client,
            &[IoSlice::new(b"one")],
            &mut control,
            SendFlags::empty(),
        )
        .unwrap();
        client.write_all(b"two").unwrap();
    }
    assert_eq!(server.accept().receive(300), b"onetwo".repeat(50));
}
