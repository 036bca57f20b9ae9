//! Listening sockets: what may be replaced, what may not, and what stays behind.

use std::{
    fs,
    io::Write,
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    path::Path,
};

use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    io::Errno,
};
use sidecar_agent::{
    compile::UnixAddr,
    relay::{Cause, listen},
};

use crate::support::{
    Server, connect_through, engine, fresh_name, lead_to, path_of, serve, unix_at,
};

#[test]
fn a_socket_file_is_for_anybody_and_goes_with_the_listener() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("relay.sock");
    let listening = unix_at(&path).unwrap();
    assert_eq!(
        fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o7777,
        0o666
    );
    drop(listening);
    assert!(!path.exists());

    let private = listen::unix(None, &path_of(&path), Mode::from_raw_mode(0o600)).unwrap();
    assert_eq!(
        fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o7777,
        0o600
    );
    // Handed over, the file stays.
    let _socket = private.release();
    assert!(path.exists());
}

#[test]
fn a_stale_socket_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("relay.sock");
    drop(Server::unix(path_of(&path)));
    assert!(path.exists(), "std leaves the file");
    let (engine, server) = (engine(), Server::tcp());
    let (_, relay) = serve(
        &engine,
        unix_at(&path).unwrap(),
        lead_to([server.name().target()]),
    );
    let (mut client, mut accepted) = connect_through(&relay, &server);
    client.write_all(b"new").unwrap();
    assert_eq!(accepted.receive(3), b"new");
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("file"), "precious").unwrap();
    fs::create_dir(at("directory")).unwrap();
    std::os::unix::fs::symlink("file", at("link")).unwrap();
    let live = Server::unix(path_of(&at("live")));
    let _datagram = UnixDatagram::bind(at("datagram")).unwrap();
    for (name, occupant) in [
        ("file", "a regular file"),
        ("directory", "a directory"),
        ("link", "a symbolic link"),
        ("live", "a socket in use"),
        ("datagram", "a socket in use"),
    ] {
        let error = unix_at(&at(name)).unwrap_err();
        assert_eq!(error.cause, Cause::Occupied(occupant));
        let text = error.to_string();
        assert!(
            text.contains(at(name).to_str().unwrap()) && text.contains("remove it"),
            "{text}"
        );
        assert!(fs::symlink_metadata(at(name)).is_ok(), "{name} was removed");
    }
    assert_eq!(fs::read(at("file")).unwrap(), b"precious");
    // The probe that told so was one connection.
    live.accept();
}

#[test]
fn a_file_that_took_our_place_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("relay.sock");
    let listening = unix_at(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let _other = Server::unix(path_of(&path));
    drop(listening);
    assert!(path.exists());
}

#[test]
fn what_is_wrong_with_a_path_is_told() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    for (path, errno, remedy) in [
        (
            dir.path().join("missing/relay.sock"),
            Errno::NOENT,
            "create its directory",
        ),
        (
            dir.path().join("file/relay.sock"),
            Errno::NOTDIR,
            "no directory",
        ),
        (dir.path().join(".."), Errno::INVAL, "ends in a file name"),
        (
            Path::new("").to_owned(),
            Errno::INVAL,
            "ends in a file name",
        ),
        (
            Path::new("/proc/relay.sock").to_owned(),
            Errno::NOENT,
            "create its directory",
        ),
    ] {
        let error = unix_at(&path).unwrap_err();
        assert!(error.to_string().contains(remedy), "{error}");
        assert_eq!(error.cause, Cause::System(errno), "{error}");
    }
}

#[test]
fn a_long_path_and_a_root() {
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("d".repeat(120));
    fs::create_dir(&long).unwrap();
    let listening = unix_at(&long.join("relay.sock")).unwrap();
    assert!(long.join("relay.sock").exists());
    drop(listening);
    assert!(!long.join("relay.sock").exists());

    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, &long, flags, Mode::empty()).unwrap();
    std::os::unix::fs::symlink(dir.path(), long.join("out")).unwrap();
    let inside = |path: &str| {
        use std::os::fd::AsFd;
        listen::unix(
            Some(root.as_fd()),
            &UnixAddr::Path(path.into()),
            listen::ANYBODY,
        )
    };
    let _kept = inside("/relay.sock").unwrap();
    assert!(long.join("relay.sock").exists());
    assert_eq!(
        inside("/out/relay.sock").unwrap_err().cause,
        Cause::System(Errno::NOENT)
    );
}

#[test]
fn addresses_in_use() {
    let name = fresh_name();
    let _first = listen::unix(None, &name, listen::ANYBODY).unwrap();
    let error = listen::unix(None, &name, listen::ANYBODY).unwrap_err();
    assert_eq!(error.cause, Cause::System(Errno::ADDRINUSE));

    let Server::Tcp(taken) = Server::tcp() else {
        unreachable!()
    };
    let error = listen::tcp(taken.local_addr().unwrap()).unwrap_err();
    assert_eq!(error.cause, Cause::System(Errno::ADDRINUSE));
    assert!(
        error
            .to_string()
            .contains(&taken.local_addr().unwrap().to_string()),
        "{error}"
    );
    let error = listen::tcp("192.0.2.1:0".parse().unwrap()).unwrap_err();
    assert_eq!(error.cause, Cause::System(Errno::ADDRNOTAVAIL));

    // One port, both families.
    let Ok(six) = listen::tcp("[::]:0".parse().unwrap()) else {
        println!("skipped: this machine has no IPv6");
        return;
    };
    let Ok(sidecar_agent::relay::SocketName::Tcp(address)) = six.local() else {
        unreachable!()
    };
    listen::tcp(([0, 0, 0, 0], address.port()).into()).unwrap();
}
