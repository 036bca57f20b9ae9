//! Socket calls one at a time, as standard input asks for them.

use std::{
    collections::BTreeMap,
    io::{self, BufRead as _, Read as _},
    net::SocketAddr,
    os::fd::OwnedFd,
};

use anyhow::Context as _;
use rustix::{
    io::Errno,
    net::{
        self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto,
        sockopt::set_socket_reuseaddr,
    },
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sidecar_tests::apps::{
    probe::{Call, Hoarded, Kind},
    wire::Seen,
};
use socket2::SockRef;

use crate::{connect::print, socket, visit};

/// The sockets by number.
#[derive(Default)]
struct Sockets {
    open: BTreeMap<u32, OwnedFd>,
    next: u32,
    hoarded: Vec<OwnedFd>,
}

pub fn run() -> anyhow::Result<()> {
    let mut sockets = Sockets::default();
    for line in io::stdin().lock().lines() {
        let line = line.context("cannot read standard input")?;
        let call = serde_json::from_str(&line).with_context(|| format!("not a call: {line}"))?;
        print(&sockets.make(call).map_err(Errno::raw_os_error))?;
    }
    Ok(())
}

impl Sockets {
    fn make(&mut self, call: Call) -> rustix::io::Result<Value> {
        match call {
            Call::Socket(kind) => {
                self.next += 1;
                self.open.insert(self.next, open(kind)?);
                return Ok(json!(self.next));
            }
            Call::Close(number) => drop(self.open.remove(&number)),
            Call::Bind(number, address) => net::bind(self.get(number)?, &address)?,
            Call::Connect(number, address) => net::connect(self.get(number)?, &address)?,
            Call::Disconnect(number) => net::connect_unspec(self.get(number)?)?,
            Call::Getsockname(number) => {
                let name = net::getsockname(self.get(number)?)?;
                return Ok(json!(SocketAddr::try_from(name)?));
            }
            Call::Getpeername(number) => {
                let name = net::getpeername(self.get(number)?)?.ok_or(Errno::NOTCONN)?;
                return Ok(json!(SocketAddr::try_from(name)?));
            }
            Call::Banner(number) => {
                let seen: Seen = banner(self.get(number)?)?;
                return Ok(json!(seen));
            }
            Call::Ping(number) => {
                net::send(self.get(number)?, b"ping", SendFlags::empty())?;
                net::recv(self.get(number)?, &mut [0; 4], RecvFlags::empty())?;
            }
            Call::SendTo(number, text, address) => {
                net::sendto(
                    self.get(number)?,
                    text.as_bytes(),
                    SendFlags::empty(),
                    &address,
                )?;
            }
            Call::Receive(number) => {
                let mut buffer = [0; 512];
                let (length, _, from) =
                    net::recvfrom(self.get(number)?, &mut buffer[..], RecvFlags::empty())?;
                let from = SocketAddr::try_from(from.ok_or(Errno::DESTADDRREQ)?)?;
                return Ok(json!((String::from_utf8_lossy(&buffer[..length]), from)));
            }
            Call::BindToDevice(number, interface) => {
                SockRef::from(self.get(number)?)
                    .bind_device(Some(interface.as_bytes()))
                    .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL))?;
            }
            Call::Hoard(addresses, times) => return Ok(json!(self.hoard(&addresses, times))),
            Call::Visit(asked) => return visit::make(asked).map(|visited| json!(visited)),
            Call::Visits(address, times) => {
                let visits: Vec<_> = (0..times)
                    .map(|_| see(address).map_err(Errno::raw_os_error))
                    .collect();
                return Ok(json!(visits));
            }
        }
        Ok(Value::Null)
    }

    fn hoard(&mut self, addresses: &[SocketAddr], times: u32) -> Hoarded {
        let mut made = Vec::new();
        for address in addresses.iter().cycle().take(times as usize) {
            let connected = open(Kind::tcp(*address)).and_then(|socket| {
                net::connect(&socket, address)?;
                made.push((SocketAddr::try_from(net::getsockname(&socket)?)?, *address));
                Ok(socket)
            });
            match connected {
                Ok(socket) => self.hoarded.push(socket),
                Err(errno) => {
                    let errno = Some(errno.raw_os_error());
                    return Hoarded { made, errno };
                }
            }
        }
        Hoarded { made, errno: None }
    }

    fn get(&self, number: u32) -> rustix::io::Result<&OwnedFd> {
        self.open.get(&number).ok_or(Errno::BADF)
    }
}

fn open(kind: Kind) -> rustix::io::Result<OwnedFd> {
    let (family, kind, protocol) = match kind {
        Kind::Tcp4 => (AddressFamily::INET, SocketType::STREAM, None),
        Kind::Tcp6 => (AddressFamily::INET6, SocketType::STREAM, None),
        Kind::Mptcp4 => (
            AddressFamily::INET,
            SocketType::STREAM,
            Some(ipproto::MPTCP),
        ),
        Kind::Udp4 => (AddressFamily::INET, SocketType::DGRAM, None),
        Kind::Udp6 => (AddressFamily::INET6, SocketType::DGRAM, None),
    };
    let socket = net::socket_with(family, kind, SocketFlags::CLOEXEC, protocol)?;
    socket::limit(&socket)?;
    // The port of an earlier connection can be bound again.
    set_socket_reuseaddr(&socket, true)?;
    Ok(socket)
}

fn see(address: SocketAddr) -> rustix::io::Result<Seen> {
    let socket = open(Kind::tcp(address))?;
    net::connect(&socket, &address)?;
    banner(&socket)
}

/// `EPROTO`: the connection ended without a banner.
pub fn banner<T: DeserializeOwned>(socket: &OwnedFd) -> rustix::io::Result<T> {
    let mut text = String::new();
    socket::stream(socket.try_clone().map_err(|_| Errno::MFILE)?)
        .read_to_string(&mut text)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::PROTO))?;
    serde_json::from_str(&text).map_err(|_| Errno::PROTO)
}
