//! Answers connections and datagrams at many addresses with what it sees of them.

use std::{
    io::{self, BufRead as _, Write as _},
    net::{SocketAddr, TcpListener, UdpSocket},
    thread,
};

use anyhow::Context as _;
use rustix::{
    io::Errno,
    net::{
        self, Shutdown, SocketFlags, SocketType,
        sockopt::{set_ipv6_v6only, set_socket_reuseaddr},
    },
    thread as capabilities,
    thread::{CapabilitySet, CapabilitySets},
};
use sidecar_tests::apps::{
    answerer::Listen,
    visit::{Report, User},
    wire::Seen,
};
use socket2::SockRef;

use crate::{connect::print, socket, user, visit::become_user};

#[derive(clap::Args)]
pub struct Args {
    /// Name in the reports
    #[arg(long)]
    name: String,
    /// Become this user and group, without other groups: UID:GID
    #[arg(long = "as", value_parser = user)]
    user: Option<(u32, u32)>,
    /// Make TCP sockets transparent (`IP_TRANSPARENT`), keeping the capability for it
    #[arg(long)]
    transparent: bool,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    if let Some((uid, gid)) = args.user {
        become_proxy(uid, gid, args.transparent)
            .with_context(|| format!("cannot become user {uid}:{gid}"))?;
    }
    for line in io::stdin().lock().lines() {
        let line = line.context("cannot read standard input")?;
        let listen = serde_json::from_str(&line).with_context(|| format!("no address: {line}"))?;
        let done = answer_at(listen, args).map_err(|error| {
            Errno::from_io_error(&error)
                .unwrap_or(Errno::IO)
                .raw_os_error()
        });
        print(&done)?;
    }
    Ok(())
}

/// There are no other threads yet; those to come inherit it.
fn become_proxy(uid: u32, gid: u32, transparent: bool) -> rustix::io::Result<()> {
    capabilities::set_keep_capabilities(transparent)?;
    become_user(&User {
        uid,
        gid,
        groups: Vec::new(),
    })?;
    let kept = if transparent {
        CapabilitySet::NET_ADMIN
    } else {
        CapabilitySet::empty()
    };
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    // User 0 keeps all unless told otherwise.
    capabilities::set_capabilities(None, sets)
}

fn answer_at(listen: Listen, args: &Args) -> io::Result<()> {
    let name = args.name.clone();
    match listen {
        Listen::Tcp(address) => {
            let listener = tcp(address, args.transparent)?;
            thread::spawn(move || connections(&listener, address, &name));
        }
        Listen::Udp(address) => {
            let socket = UdpSocket::bind(address)?;
            thread::spawn(move || datagrams(&socket, address, &name));
        }
    }
    Ok(())
}

fn tcp(address: SocketAddr, transparent: bool) -> io::Result<TcpListener> {
    let family = socket::family(address);
    let socket = net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        set_ipv6_v6only(&socket, true)?;
    }
    if transparent {
        // IPv6 sockets have the same flag, and take the option of IPv4 for it.
        SockRef::from(&socket).set_ip_transparent_v4(true)?;
    }
    net::bind(&socket, &address)?;
    net::listen(&socket, 1024)?;
    Ok(socket.into())
}

/// Whoever calls reads at once or is gone, and the report fits any buffer: no thread for each.
fn connections(listener: &TcpListener, address: SocketAddr, name: &str) {
    loop {
        let done = listener.accept().and_then(|(mut connection, _)| {
            let report = Report {
                listener: address,
                seen: socket::seen(&connection, name.to_owned()),
            };
            connection.write_all(serde_json::to_string(&report)?.as_bytes())?;
            Ok(net::shutdown(&connection, Shutdown::Write)?)
        });
        complain(name, done);
    }
}

fn datagrams(socket: &UdpSocket, address: SocketAddr, name: &str) {
    loop {
        let done = socket.recv_from(&mut [0; 16]).and_then(|(_, peer)| {
            let report = Report {
                listener: address,
                seen: Seen {
                    name: name.to_owned(),
                    peer: Some(peer),
                    local: None,
                    original_dst: None,
                    original_dst_errno: None,
                },
            };
            socket.send_to(serde_json::to_string(&report)?.as_bytes(), peer)?;
            Ok(())
        });
        complain(name, done);
    }
}

fn complain(name: &str, done: io::Result<()>) {
    if let Err(error) = done {
        eprintln!("app: {name}: {error}");
    }
}
