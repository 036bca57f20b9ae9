//! The admin socket: one request, one answer, both a line of JSON. Root only: by the permissions of
//! its file and directory, and by who the kernel says has connected.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{fs::MetadataExt as _, net::UnixStream},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::{fs::Mode, process::geteuid};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt},
    net::{
        UnixListener,
        unix::{ReadHalf, WriteHalf},
    },
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};

use super::{
    status::{CaptureStatus, Status},
    trace::{self, Filter, Hub},
};
use crate::{
    compile::UnixAddr,
    relay::{
        Role,
        listen::{self, Listening},
    },
};

/// Longest request.
const REQUEST_BYTES: u64 = 64 * 1024;
/// How long to wait after a failed accept.
const RETRY: Duration = Duration::from_millis(100);
/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the next agent may take to take over.
const TAKE_OVER_PATIENCE: Duration = Duration::from_mins(1);

/// What can be asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// The whole state.
    Status,
    /// To have new connections of a workload be captured, or pass.
    Capture {
        /// `namespace/name`.
        workload: String,
        /// `None`: as its configuration says.
        on: Option<bool>,
    },
    /// To hand everything over to the process that asks, which is the next agent.
    TakeOver,
    /// By the next agent, on the same connection: it has taken over.
    Taken {
        /// With the relay's TCP listeners. If not, this agent serves them until the last connection
        /// that is led to them has arrived.
        tcp: bool,
    },
}

/// The answer to [`Request::Status`], or to any request that failed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The state.
    Status(Box<Status>),
    /// What [`Request::Capture`] has come to.
    Capture(CaptureStatus),
    /// What can be taken over, see [`Request::TakeOver`].
    Offer(Offer),
    /// Why the request was not served.
    Error(String),
}

/// What an agent hands over. Descriptors are numbers in its process: see `pidfd_getfd(2)`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Offer {
    /// Its process. (`SO_PEERCRED` tells who opened the admin socket first.)
    pub pid: i32,
    /// The listening admin socket.
    pub admin: i32,
    /// The relay's listening sockets, by workload.
    pub sockets: Vec<OfferedSocket>,
}

/// One of the relay's listening sockets.
#[derive(Debug, Serialize, Deserialize)]
pub struct OfferedSocket {
    /// `namespace/name`.
    pub workload: String,
    /// Which it is.
    pub role: Role,
    /// Its descriptor.
    pub descriptor: i32,
}

/// A request on its way to the agent's main loop.
pub enum Call {
    /// To be answered.
    Ask(Request, oneshot::Sender<Answer>),
    /// The next agent wants to take over: to be answered with an [`Offer`]; whether it has taken it
    /// comes later, or never.
    TakeOver(oneshot::Sender<Answer>, oneshot::Receiver<Taken>),
}

/// The next agent has taken over; with the relay's TCP listeners or without.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// With them.
    pub tcp: bool,
}

/// Where the socket of the agent with this run directory is.
#[must_use]
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("admin.sock")
}

/// The admin socket, served.
pub struct Admin {
    /// What is asked.
    pub calls: mpsc::Receiver<Call>,
    sender: mpsc::Sender<Call>,
    /// Kept here for its file, which goes when the agent ends.
    listening: Listening,
    task: JoinHandle<()>,
    traces: Hub,
}

impl Admin {
    /// Opens the socket and serves it.
    ///
    /// # Errors
    /// If another agent serves the same run directory, if others may write to that, or the socket
    /// cannot be made.
    pub fn open(run_dir: &Path, traces: Hub) -> Result<Self> {
        std::fs::create_dir_all(run_dir)
            .with_context(|| format!("creating {}", run_dir.display()))?;
        refuse_if_others_write(run_dir)?;
        let address = address(run_dir)?;
        let listening = listen::unix(None, &address, Mode::RUSR | Mode::WUSR)
            .context("opening the admin socket: is another agent running?")?;
        Self::serve(listening, traces)
    }

    /// Serves a socket that the agent before has opened.
    ///
    /// # Errors
    /// If it is not the socket of this run directory any more.
    pub fn adopt(run_dir: &Path, socket: OwnedFd, traces: Hub) -> Result<Self> {
        let listening = Listening::adopt_unix(None, &address(run_dir)?, socket)
            .context("taking over the admin socket")?;
        Self::serve(listening, traces)
    }

    fn serve(listening: Listening, traces: Hub) -> Result<Self> {
        let (sender, calls) = mpsc::channel(16);
        Ok(Self {
            task: accept(&listening, sender.clone(), traces.clone())?,
            calls,
            sender,
            listening,
            traces,
        })
    }

    /// The descriptor of the listening socket.
    #[must_use]
    pub fn descriptor(&self) -> i32 {
        self.listening.as_fd().as_raw_fd()
    }

    /// Accepts no one any more. Who connects waits.
    pub async fn pause(&mut self) {
        self.task.abort();
        // That it was aborted is known.
        let _ = (&mut self.task).await;
    }

    /// Accepts again.
    ///
    /// # Errors
    /// For want of descriptors.
    pub fn resume(&mut self) -> Result<()> {
        self.task = accept(&self.listening, self.sender.clone(), self.traces.clone())?;
        Ok(())
    }

    /// Leaves the socket, and its file, to the next agent.
    pub fn give_up(self) {
        drop(self.listening.release());
    }
}

fn address(run_dir: &Path) -> Result<UnixAddr> {
    let path = socket_path(run_dir);
    let name = path
        .to_str()
        .context("the run directory's path is not UTF-8")?;
    Ok(UnixAddr::Path(name.to_owned()))
}

fn accept(listening: &Listening, calls: mpsc::Sender<Call>, traces: Hub) -> Result<JoinHandle<()>> {
    let clone = listening.as_fd().try_clone_to_owned()?;
    let std_listener = std::os::unix::net::UnixListener::from(clone);
    std_listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(std_listener)?;
    Ok(tokio::spawn(async move {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, mostly: the next try may find some.
                    tracing::warn!("admin socket: {error}");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            };
            let (calls, traces) = (calls.clone(), traces.clone());
            tokio::spawn(async move {
                if let Err(error) = talk(stream, calls, &traces).await {
                    tracing::debug!("admin request: {error:#}");
                }
            });
        }
    }))
}

/// Whoever may write to the directory can put a socket of their own there, and answer for us.
fn refuse_if_others_write(run_dir: &Path) -> Result<()> {
    let found =
        std::fs::metadata(run_dir).with_context(|| format!("reading {}", run_dir.display()))?;
    if !may_ask(found.uid()) || found.mode() & 0o022 != 0 {
        bail!(
            "{} belongs to user {} and has mode {:04o}: others may write to it; make it root's, \
             with mode 0755 or less, or give another --run-dir",
            run_dir.display(),
            found.uid(),
            found.mode() & 0o7777
        );
    }
    Ok(())
}

/// Root, and the user that the agent runs as.
fn may_ask(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}

/// Serves one connection. Nobody is waited for but whoever traces, or takes over.
async fn talk(
    mut stream: tokio::net::UnixStream,
    calls: mpsc::Sender<Call>,
    traces: &Hub,
) -> Result<()> {
    let peer = stream.peer_cred().context("asking who has connected")?;
    let (mut reader, mut writer) = stream.split();
    let line = timeout(PATIENCE, read_line(&mut reader)).await??;
    if !may_ask(peer.uid()) {
        let uid = peer.uid();
        tracing::warn!(uid, pid = peer.pid(), "admin socket: refused");
        let text = format!(
            "user {uid} may not ask this agent anything: only root and the agent's own user may"
        );
        return say(&mut writer, &Answer::Error(text)).await;
    }
    if let Some(filter) = filter(&line) {
        return trace::serve(traces, filter, reader, writer).await;
    }
    let (reply, answer) = oneshot::channel();
    let (confirm, confirmed) = oneshot::channel();
    match serde_json::from_str(&line) {
        Ok(Request::TakeOver) => {
            calls.send(Call::TakeOver(reply, confirmed)).await?;
            say(&mut writer, &timeout(PATIENCE, answer).await??).await?;
            let line = timeout(TAKE_OVER_PATIENCE, read_line(&mut reader)).await??;
            if let Request::Taken { tcp } = serde_json::from_str(&line)? {
                // The main loop waits as long as this task.
                let _ = confirm.send(Taken { tcp });
            }
            Ok(())
        }
        Ok(request) => {
            calls.send(Call::Ask(request, reply)).await?;
            say(&mut writer, &timeout(PATIENCE, answer).await??).await
        }
        Err(error) => {
            let text = format!("the request is not understood: {error}");
            say(&mut writer, &Answer::Error(text)).await
        }
    }
}

async fn read_line(reader: &mut ReadHalf<'_>) -> Result<String> {
    let mut line = String::new();
    let mut reader = tokio::io::BufReader::new(reader.take(REQUEST_BYTES));
    reader.read_line(&mut line).await?;
    Ok(line)
}

async fn say(writer: &mut WriteHalf<'_>, answer: &Answer) -> Result<()> {
    let mut text = serde_json::to_vec(answer)?;
    text.push(b'\n');
    timeout(PATIENCE, writer.write_all(&text)).await??;
    Ok(())
}

/// What is to be traced, if this is such a request.
fn filter(line: &str) -> Option<Filter> {
    let mut request: BTreeMap<String, Filter> = serde_json::from_str(line).ok()?;
    request.remove(trace::REQUEST)
}

/// What to say when nobody answers at a socket.
#[must_use]
pub fn no_agent(path: &Path) -> String {
    format!(
        "asking the agent at {}: is it running, are you root, is --run-dir the agent's?",
        path.display()
    )
}

/// Asks the agent with this run directory.
///
/// # Errors
/// If no agent answers there.
pub fn ask(run_dir: &Path, request: &Request) -> Result<Answer> {
    let path = socket_path(run_dir);
    let stream = UnixStream::connect(&path).with_context(|| no_agent(&path))?;
    ask_on(&stream, request).with_context(|| format!("asking the agent at {}", path.display()))
}

/// Asks on a connection.
///
/// # Errors
/// If there is no answer, or one that is not understood.
pub fn ask_on(mut stream: &UnixStream, request: &Request) -> Result<Answer> {
    stream.set_read_timeout(Some(PATIENCE))?;
    serde_json::to_writer(stream, request)?;
    stream.write_all(b"\n")?;
    let mut line = String::new();
    BufReader::new(stream)
        .read_line(&mut line)
        .context("reading the agent's answer")?;
    if line.is_empty() {
        bail!("it closed the connection without an answer");
    }
    serde_json::from_str(&line)
        .context("the agent's answer is not understood: is it of another version?")
}
