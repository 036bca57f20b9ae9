//! Answering.

use std::{
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rustix::fs::Mode;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        UnixListener,
        unix::{ReadHalf, WriteHalf},
    },
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};

use super::{Answer, Call, PATIENCE, Request, Taken, socket_path};
use crate::{
    compile::UnixAddr,
    observe::trace::{self, Filter, Hub},
    relay::listen::{self, Listening},
    root_socket::{self, may_ask},
};

/// Longest request.
const REQUEST_BYTES: u64 = 64 * 1024;
/// How long the next agent may take to take over.
const TAKE_OVER_PATIENCE: Duration = Duration::from_mins(1);

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
    let talk = move |stream| talk(stream, calls.clone(), traces.clone());
    Ok(tokio::spawn(root_socket::accept("admin", listener, talk)))
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

/// Serves one connection. Nobody is waited for but whoever traces, or takes over.
async fn talk(
    mut stream: tokio::net::UnixStream,
    calls: mpsc::Sender<Call>,
    traces: Hub,
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
    if let Some(filter) = Filter::of_request(&line) {
        return trace::serve(&traces, filter, reader, writer).await;
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
