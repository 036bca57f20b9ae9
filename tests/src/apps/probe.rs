//! Socket calls one at a time, made by a process of its own, where [`Client`](super::Client) makes
//! a whole connection.

use std::{
    cell::RefCell,
    io::Write as _,
    net::SocketAddr,
    process::{Child, ChildStdin},
    sync::mpsc,
};

use anyhow::{Context as _, bail};
use rustix::io::Errno;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    server::{app, spawn},
    visit::{Visit, Visited},
    wire::Seen,
};
use crate::{Place, poll::DEADLINE};

/// What a call yields: the outer error is the test's, the inner one the kernel's.
pub type Called<T> = anyhow::Result<Result<T, Errno>>;

/// What a [`Probe`] is asked to do. Sockets are numbered by the probe.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named after the system calls")]
pub enum Call {
    Socket(Kind),
    Close(u32),
    Bind(u32, SocketAddr),
    Connect(u32, SocketAddr),
    /// connect(2) to `AF_UNSPEC`.
    Disconnect(u32),
    Getsockname(u32),
    Getpeername(u32),
    /// Reads what a server in [`Mode::Banner`](super::Mode::Banner) sends.
    Banner(u32),
    /// Sends a datagram and waits for one to come back.
    Ping(u32),
    SendTo(u32, String, SocketAddr),
    /// Receives a datagram of text, and who sent it.
    Receive(u32),
    /// `SO_BINDTODEVICE`.
    BindToDevice(u32, String),
    /// Connects, reads the banner and closes, so many times.
    Visits(SocketAddr, u32),
    /// Connects so many times to one address after the other, and keeps the connections.
    Hoard(Vec<SocketAddr>, u32),
    /// Makes a connection or datagram as somebody.
    Visit(Visit),
}

/// What became of many connections.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hoarded {
    /// Of each that was made: the client's end, and where it was going.
    pub made: Vec<(SocketAddr, SocketAddr)>,
    /// Why the next one could not be made.
    pub errno: Option<i32>,
}

/// What sockets there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Kind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6, and over IPv4 by v4-mapped addresses.
    Tcp6,
    /// Multipath TCP over IPv4.
    Mptcp4,
    /// UDP over IPv4.
    Udp4,
    /// UDP over IPv6, and over IPv4 by v4-mapped addresses.
    Udp6,
}

/// A process that makes the calls it is told to. It ends when this is dropped.
#[derive(Debug)]
pub struct Probe {
    child: Child,
    stdin: RefCell<ChildStdin>,
    lines: mpsc::Receiver<String>,
}

impl Probe {
    /// Starts one.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(place: Place<'_>) -> anyhow::Result<Self> {
        let (mut child, lines) = spawn(app(&place)?.arg("probe"))?;
        let stdin = child.stdin.take().context("app has no stdin")?;
        Ok(Self {
            child,
            stdin: RefCell::new(stdin),
            lines,
        })
    }

    /// Makes a socket.
    ///
    /// # Errors
    /// As [`Called`].
    pub fn socket(&self, kind: Kind) -> Called<Socket<'_>> {
        let made: Result<u32, Errno> = self.call(&Call::Socket(kind))?;
        Ok(made.map(|number| Socket {
            probe: self,
            number,
        }))
    }

    /// Makes a socket of the address' family and connects it.
    ///
    /// # Errors
    /// As [`Called`].
    pub fn connect(&self, address: SocketAddr) -> Called<Socket<'_>> {
        let socket = self.socket(Kind::tcp(address))??;
        Ok(socket.connect(address)?.map(|()| socket))
    }

    /// Connects, reads the server's banner and closes.
    ///
    /// # Errors
    /// As [`Called`].
    pub fn visit(&self, address: SocketAddr) -> Called<Seen> {
        let mut visits = self.visits(address, 1)?;
        visits.pop().context("the probe made no visit")
    }

    /// Visits an address so many times, without a pause.
    ///
    /// # Errors
    /// When the probe is in trouble itself.
    pub fn visits(
        &self,
        address: SocketAddr,
        times: u32,
    ) -> anyhow::Result<Vec<Result<Seen, Errno>>> {
        let visits: Vec<Result<Seen, i32>> = self.call(&Call::Visits(address, times))??;
        Ok(visits
            .into_iter()
            .map(|visit| visit.map_err(Errno::from_raw_os_error))
            .collect())
    }

    /// Connects so many times, to one address after the other, until a connection cannot be made.
    /// They stay open as long as the probe lives.
    ///
    /// # Errors
    /// When the probe is in trouble itself.
    pub fn hoard(&self, addresses: &[SocketAddr], times: u32) -> anyhow::Result<Hoarded> {
        Ok(self.call(&Call::Hoard(addresses.to_vec(), times))??)
    }

    /// Makes a connection or datagram and reads what an [`Answerer`](super::Answerer) reports.
    ///
    /// # Errors
    /// As [`Called`].
    pub fn make(&self, visit: Visit) -> Called<Visited> {
        self.call(&Call::Visit(visit))
    }

    fn call<T: DeserializeOwned>(&self, call: &Call) -> Called<T> {
        writeln!(self.stdin.borrow_mut(), "{}", serde_json::to_string(call)?)
            .context("the probe has ended")?;
        let patience = match call {
            Call::Hoard(..) => DEADLINE * 4,
            _ => DEADLINE,
        };
        let Ok(line) = self.lines.recv_timeout(patience) else {
            bail!("the probe has ended, or is stuck in {call:?}");
        };
        let answer: Result<T, i32> =
            serde_json::from_str(&line).with_context(|| format!("{call:?} answered {line}"))?;
        Ok(answer.map_err(Errno::from_raw_os_error))
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A socket of a [`Probe`], closed when dropped.
#[derive(Debug)]
pub struct Socket<'a> {
    probe: &'a Probe,
    number: u32,
}

impl Socket<'_> {
    /// `bind(2)`, with `SO_REUSEADDR`.
    ///
    /// # Errors
    /// As [`Called`]; so have all calls.
    pub fn bind(&self, address: SocketAddr) -> Called<()> {
        self.probe.call(&Call::Bind(self.number, address))
    }

    /// `connect(2)`, blocking.
    ///
    /// # Errors
    /// As [`Called`].
    pub fn connect(&self, address: SocketAddr) -> Called<()> {
        self.probe.call(&Call::Connect(self.number, address))
    }

    /// `connect(2)` to `AF_UNSPEC`: the socket can be connected again.
    ///
    /// # Errors
    /// As [`Called`].
    pub fn disconnect(&self) -> Called<()> {
        self.probe.call(&Call::Disconnect(self.number))
    }

    /// `getsockname(2)`.
    ///
    /// # Errors
    /// As [`Called`].
    pub fn local(&self) -> Called<SocketAddr> {
        self.probe.call(&Call::Getsockname(self.number))
    }

    /// `getpeername(2)`.
    ///
    /// # Errors
    /// As [`Called`].
    pub fn peer(&self) -> Called<SocketAddr> {
        self.probe.call(&Call::Getpeername(self.number))
    }

    /// Reads what a server in [`Mode::Banner`](super::Mode::Banner) sends.
    ///
    /// # Errors
    /// As [`Called`].
    pub fn banner(&self) -> Called<Seen> {
        self.probe.call(&Call::Banner(self.number))
    }

    /// `sendto(2)`, of text.
    ///
    /// # Errors
    /// As [`Called`].
    pub fn send_to(&self, text: &str, address: SocketAddr) -> Called<()> {
        self.probe
            .call(&Call::SendTo(self.number, text.to_owned(), address))
    }

    /// `recvfrom(2)`: text, and who sent it.
    ///
    /// # Errors
    /// As [`Called`].
    pub fn receive(&self) -> Called<(String, SocketAddr)> {
        self.probe.call(&Call::Receive(self.number))
    }

    /// `SO_BINDTODEVICE`.
    ///
    /// # Errors
    /// As [`Called`].
    pub fn bind_to_device(&self, interface: &str) -> Called<()> {
        self.probe
            .call(&Call::BindToDevice(self.number, interface.to_owned()))
    }

    /// Sends a datagram and waits for one to come back.
    ///
    /// # Errors
    /// As [`Called`].
    pub fn ping(&self) -> Called<()> {
        self.probe.call(&Call::Ping(self.number))
    }
}

impl Drop for Socket<'_> {
    fn drop(&mut self) {
        let _ = self.probe.call::<()>(&Call::Close(self.number));
    }
}

impl Kind {
    /// TCP over the family of an address.
    #[must_use]
    pub fn tcp(address: SocketAddr) -> Self {
        if address.is_ipv4() {
            Self::Tcp4
        } else {
            Self::Tcp6
        }
    }
}
