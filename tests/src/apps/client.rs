//! Clients.

use std::{
    io::Write as _,
    net::SocketAddr,
    path::Path,
    process::{Child, Stdio},
    sync::mpsc,
};

use anyhow::Context as _;

use super::{
    server::{app, spawn},
    wire::Outcome,
};
use crate::{Place, command::output, poll::DEADLINE};

/// A connection to be made by a process of its own.
#[derive(Clone, Debug)]
pub struct Client<'a> {
    place: Place<'a>,
    args: Vec<String>,
}

impl<'a> Client<'a> {
    /// To a TCP server.
    #[must_use]
    pub fn tcp(address: SocketAddr) -> Self {
        Self::new(["tcp".to_owned(), address.to_string()])
    }

    /// To a unix stream socket; `@name` for one in the abstract namespace.
    #[must_use]
    pub fn unix(path: &Path) -> Self {
        Self::new(["unix".to_owned(), path.display().to_string()])
    }

    /// One request of HTTP/1.1 to a [`Mode::Http`](super::Mode::Http) server, by
    /// [`request`](Self::request); `path` begins with a slash. The outcome has the answer instead
    /// of what the kernel tells of the connection.
    #[must_use]
    pub fn http(address: SocketAddr, path: &str) -> Self {
        Self::new(["http".to_owned(), format!("http://{address}{path}")])
    }

    fn new(target: [String; 2]) -> Self {
        let args = std::iter::once("connect".to_owned())
            .chain(target)
            .collect();
        Self {
            place: Place::here(),
            args,
        }
    }

    fn option(mut self, option: impl Into<String>) -> Self {
        self.args.push(option.into());
        self
    }

    /// Where and as whom it runs.
    #[must_use]
    pub fn place(mut self, place: Place<'a>) -> Self {
        self.place = place;
        self
    }

    /// From a non-blocking socket.
    #[must_use]
    pub fn non_blocking(self) -> Self {
        self.option("--non-blocking")
    }

    /// From an IPv6 socket to the v4-mapped form of the address.
    #[must_use]
    pub fn mapped(self) -> Self {
        self.option("--mapped")
    }

    /// From a socket of Multipath TCP.
    #[must_use]
    pub fn mptcp(self) -> Self {
        self.option("--mptcp")
    }

    /// From this address, bound before connecting.
    #[must_use]
    pub fn bind(self, address: SocketAddr) -> Self {
        self.option(format!("--bind={address}"))
    }

    /// Connects and closes.
    ///
    /// # Errors
    /// When the client itself cannot run; a failed connection is an [`Outcome`].
    pub fn connect(self) -> anyhow::Result<Outcome> {
        self.run()
    }

    /// Connects and waits for the banner of a [`Mode::Banner`](super::Mode::Banner) server.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn banner(self) -> anyhow::Result<Outcome> {
        self.option("--then=banner").run()
    }

    /// Makes the request of [`http`](Self::http).
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn request(self) -> anyhow::Result<Outcome> {
        self.run()
    }

    /// Sends `bytes` to a [`Mode::Echo`](super::Mode::Echo) server, half-closes, and compares what
    /// comes back, at the same time.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn echo(self, bytes: u64) -> anyhow::Result<Outcome> {
        self.option("--then=echo")
            .option(format!("--bytes={bytes}"))
            .run()
    }

    /// Sends `bytes` to a [`Mode::Sink`](super::Mode::Sink) server and half-closes.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn send(self, bytes: u64) -> anyhow::Result<Outcome> {
        self.option("--then=send")
            .option(format!("--bytes={bytes}"))
            .run()
    }

    /// Receives `bytes` from a [`Mode::Source`](super::Mode::Source) server that sends as many.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn receive(self, bytes: u64) -> anyhow::Result<Outcome> {
        self.option("--then=receive")
            .option(format!("--bytes={bytes}"))
            .run()
    }

    /// Connects to a [`Mode::Echo`](super::Mode::Echo) server and keeps the connection.
    ///
    /// # Errors
    /// When the client itself cannot run; a failed connection is in [`Held::outcome`].
    pub fn hold(self) -> anyhow::Result<Held> {
        let (place, args) = (self.place, self.option("--then=hold").args);
        let (child, lines) = spawn(app(&place)?.args(args))?;
        // From here on, dropping ends the process.
        let mut held = Held {
            child,
            lines,
            outcome: Outcome::default(),
        };
        held.outcome = serde_json::from_str(&held.line()?).context("app printed no outcome")?;
        Ok(held)
    }

    fn run(self) -> anyhow::Result<Outcome> {
        let text = output(app(&self.place)?.args(&self.args).stdin(Stdio::null()))?;
        serde_json::from_str(&text).with_context(|| format!("app printed no outcome: {text}"))
    }
}

/// A client that keeps its connection until it is dropped.
#[derive(Debug)]
pub struct Held {
    child: Child,
    lines: mpsc::Receiver<String>,
    outcome: Outcome,
}

impl Held {
    /// What became of connecting.
    #[must_use]
    pub fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a line over the connection and returns the line that comes back.
    ///
    /// # Errors
    /// When the connection is broken: with the client's error.
    pub fn exchange(&mut self, line: &str) -> anyhow::Result<String> {
        let stdin = self.child.stdin.as_mut().context("app has no stdin")?;
        writeln!(stdin, "{line}").context("the client has ended")?;
        let reply: Result<String, String> =
            serde_json::from_str(&self.line()?).context("app printed no reply")?;
        reply.map_err(anyhow::Error::msg)
    }

    fn line(&self) -> anyhow::Result<String> {
        self.lines
            .recv_timeout(DEADLINE)
            .context("the client has ended, or says nothing")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
