//! Servers.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
};

use anyhow::{Context as _, bail};

use super::wire::{Kept, Mode};
use crate::{Place, poll::DEADLINE, programs};

/// A running server, killed when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    address: Option<SocketAddr>,
    lines: mpsc::Receiver<String>,
}

/// How a server is to be started.
#[derive(Debug)]
pub struct ServerBuilder<'a> {
    place: Place<'a>,
    listen: [String; 2],
    mode: Mode,
    name: String,
    bytes: u64,
    reuse_port: bool,
}

impl Server {
    /// A server for TCP. Port 0 takes a free one; an IPv6 wildcard takes IPv4 as well.
    #[must_use]
    pub fn tcp<'a>(address: SocketAddr) -> ServerBuilder<'a> {
        ServerBuilder::new(["tcp".to_owned(), address.to_string()])
    }

    /// A server on a unix stream socket, whose file it makes, replacing one that is there.
    #[must_use]
    pub fn unix<'a>(path: &Path) -> ServerBuilder<'a> {
        ServerBuilder::new(["unix".to_owned(), path.display().to_string()])
    }

    /// Where a TCP server listens.
    ///
    /// # Panics
    /// On a unix socket.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
            .expect("a server on a unix socket has no address")
    }

    /// What a server in [`Mode::Keep`] has accepted so far.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn kept(&mut self) -> anyhow::Result<Vec<Kept>> {
        let stdin = self.child.stdin.as_mut().context("app has no stdin")?;
        writeln!(stdin).context("the server has ended")?;
        let line = self
            .lines
            .recv_timeout(DEADLINE)
            .context("the server does not tell what it keeps")?;
        serde_json::from_str(&line).with_context(|| format!("not what it keeps: {line}"))
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl<'a> ServerBuilder<'a> {
    fn new(listen: [String; 2]) -> Self {
        Self {
            place: Place::here(),
            listen,
            mode: Mode::Banner,
            name: "server".to_owned(),
            bytes: 0,
            reuse_port: false,
        }
    }

    /// Where and as whom it runs.
    #[must_use]
    pub fn place(mut self, place: Place<'a>) -> Self {
        self.place = place;
        self
    }

    /// What it does; [`Mode::Banner`] unless set.
    #[must_use]
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// How it calls itself in its banner.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// How much [`Mode::Source`] sends.
    #[must_use]
    pub fn bytes(mut self, bytes: u64) -> Self {
        self.bytes = bytes;
        self
    }

    /// Lets several servers listen at one address (`SO_REUSEPORT`).
    #[must_use]
    pub fn reuse_port(mut self) -> Self {
        self.reuse_port = true;
        self
    }

    /// Starts it and waits until it listens.
    ///
    /// # Errors
    /// When it cannot be started or cannot listen; it says why on standard error.
    pub fn start(self) -> anyhow::Result<Server> {
        let mut command = app(&self.place)?;
        command
            .arg("serve")
            .args(&self.listen)
            .args(["--mode", self.mode.name()]);
        command.args(["--name", &self.name, "--bytes", &self.bytes.to_string()]);
        if self.reuse_port {
            command.arg("--reuse-port");
        }
        let (child, lines) = spawn(&mut command)?;
        let mut server = Server {
            child,
            address: None,
            lines,
        };
        let Ok(line) = server.lines.recv_timeout(DEADLINE) else {
            bail!("the server at {} did not become ready", self.listen[1]);
        };
        let address = line
            .strip_prefix("READY ")
            .with_context(|| format!("not ready: {line}"))?;
        server.address = address.parse().ok();
        Ok(server)
    }
}

/// `app` at a place. It becomes another user by itself: that user may not be allowed to reach the
/// directory it is built in.
pub(crate) fn app(place: &Place<'_>) -> anyhow::Result<Command> {
    let mut command = place.as_own_user().command(programs::app()?);
    if let Some((uid, gid)) = place.get_user() {
        command.arg(format!("--user={uid}:{gid}"));
    }
    Ok(command)
}

/// Starts `app`, which ends when its standard input does: at the latest with this process. Yields
/// the lines it prints.
pub(crate) fn spawn(command: &mut Command) -> anyhow::Result<(Child, mpsc::Receiver<String>)> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{}`", crate::command::shown(command)))?;
    let stdout = child.stdout.take().context("app has no stdout")?;
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    Ok((child, lines))
}
