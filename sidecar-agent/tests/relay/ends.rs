//! Each side sees the other's end, or reset, as over a direct connection.

use std::{
    io::{ErrorKind, Write},
    time::Duration,
};

use sidecar_agent::relay::{
    Engine,
    listen::{self, Listening},
};

use crate::support::{
    Server, Stream, connect_through, engine, eventually, fresh_name, lead_to, loopback, serve,
};

/// A relayed connection, and what keeps it.
fn relayed(socket: Listening, server: &Server) -> (Engine, Stream, Stream) {
    let engine = engine();
    let (_, relay) = serve(&engine, socket, lead_to([server.name().target()]));
    let (client, accepted) = connect_through(&relay, server);
    (engine, client, accepted)
}

fn unix_socket() -> Listening {
    listen::unix(None, &fresh_name(), listen::ANYBODY).unwrap()
}

fn half_close(first: &mut Stream, second: &mut Stream) {
    first.write_all(b"question").unwrap();
    first.end();
    assert_eq!(second.receive_all(), b"question");
    // The other direction is open still, for as long as it is wanted.
    second.write_all(b"an answer ").unwrap();
    assert_eq!(first.receive(10), b"an answer ");
    second.write_all(b"in two parts").unwrap();
    second.end();
    assert_eq!(first.receive_all(), b"in two parts");
}

#[test]
fn the_client_ends_first() {
    for (socket, server) in [
        (loopback(), Server::tcp()),
        (loopback(), Server::unix(fresh_name())),
        (unix_socket(), Server::tcp()),
    ] {
        let (engine, mut client, mut accepted) = relayed(socket, &server);
        half_close(&mut client, &mut accepted);
        eventually("the connection is forgotten", || engine.stats().active == 0);
        assert_eq!(engine.stats().reset, 0);
    }
}

#[test]
fn the_server_ends_first() {
    for (socket, server) in [
        (loopback(), Server::tcp()),
        (loopback(), Server::unix(fresh_name())),
        (unix_socket(), Server::tcp()),
    ] {
        let (engine, mut client, mut accepted) = relayed(socket, &server);
        half_close(&mut accepted, &mut client);
        eventually("the connection is forgotten", || engine.stats().active == 0);
        assert_eq!(engine.stats().reset, 0);
    }
}

#[test]
fn a_reset_is_a_reset_after_what_was_sent() {
    let server = Server::tcp();
    for swapped in [false, true] {
        let (engine, client, accepted) = relayed(loopback(), &server);
        let (mut first, mut second) = if swapped {
            (accepted, client)
        } else {
            (client, accepted)
        };
        first.write_all(b"last words").unwrap();
        assert_eq!(second.receive(10), b"last words");
        first.reset();
        assert_eq!(
            second.receive_until_broken(),
            (vec![], Some(ErrorKind::ConnectionReset))
        );
        eventually("the connection is forgotten", || engine.stats().active == 0);
        assert_eq!(engine.stats().reset, 1);
    }
}

#[test]
fn a_reset_after_the_end_is_passed_on() {
    // The relay reads no more from the client then.
    let server = Server::tcp();
    let (_engine, client, mut accepted) = relayed(loopback(), &server);
    client.end();
    assert_eq!(accepted.receive_all(), b"");
    client.reset();
    eventually("the server is told", || {
        let error = accepted.write(b"answer").err().map(|error| error.kind());
        matches!(
            error,
            Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
        )
    });
}

#[test]
fn a_reset_while_the_reader_is_slow_is_passed_on() {
    let server = Server::tcp();
    let (engine, mut client, mut accepted) = relayed(loopback(), &server);
    client.be_patient(Duration::from_millis(300));
    let much = vec![0; 1 << 16];
    while client.write(&much).is_ok() {}
    client.reset();
    eventually("the relay has noticed", || engine.stats().reset == 1);
    let (_, error) = accepted.receive_until_broken();
    assert_eq!(error, Some(ErrorKind::ConnectionReset));
}

#[test]
fn a_reader_that_goes_away_resets_the_writer() {
    for server in [Server::tcp(), Server::unix(fresh_name())] {
        let (_engine, mut client, accepted) = relayed(loopback(), &server);
        drop(accepted);
        eventually("the client is told", || client.write(&[0; 1000]).is_err());
    }
}

#[test]
fn a_unix_peer_sees_the_end_where_tcp_was_reset() {
    let server = Server::unix(fresh_name());
    let (_engine, client, mut accepted) = relayed(loopback(), &server);
    client.reset();
    assert_eq!(accepted.receive_all(), b"");
    assert_eq!(
        accepted.write(b"answer").unwrap_err().kind(),
        ErrorKind::BrokenPipe
    );
}

#[test]
fn a_unix_peer_that_leaves_bytes_unread_resets_tcp() {
    let server = Server::unix(fresh_name());
    let (engine, mut client, accepted) = relayed(loopback(), &server);
    client.write_all(b"unread").unwrap();
    eventually("the server has them", || {
        engine.stats().bytes_to_target == 6
    });
    drop(accepted);
    assert_eq!(
        client.receive_until_broken(),
        (vec![], Some(ErrorKind::ConnectionReset))
    );
}

#[test]
fn an_answer_sent_before_leaving_arrives() {
    // As a server that answers "too large" and closes while the upload goes on.
    let server = Server::unix(fresh_name());
    let (_engine, mut client, mut accepted) = relayed(loopback(), &server);
    client.write_all(&[0; 100]).unwrap();
    accepted.receive(100);
    accepted.write_all(b"too large").unwrap();
    drop(accepted);
    assert_eq!(client.receive(9), b"too large");
}
