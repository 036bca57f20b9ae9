//! The admin socket: one request, one answer, both a line of JSON. Root only: by the permissions of
//! its file and directory, and by who the kernel says has connected.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::{fs::MetadataExt as _, net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::{fs::Mode, process::geteuid};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt},
    net::UnixListener,
    sync::{mpsc, oneshot},
};

use super::status::Status;
use crate::{compile::UnixAddr, relay::listen};

/// Longest request.
const REQUEST_BYTES: u64 = 64 * 1024;
/// How long to wait after a failed accept.
const RETRY: Duration = Duration::from_millis(100);
/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);

/// What can be asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// The whole state.
    Status,
}

/// The answer to [`Request::Status`], or to any request that failed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The state.
    Status(Box<Status>),
    /// Why the request was not served.
    Error(String),
}

/// A request on its way to the agent's main loop.
pub type Call = (Request, oneshot::Sender<Answer>);

/// Where the socket of the agent with this run directory is.
#[must_use]
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("admin.sock")
}

/// Opens the socket and serves it; calls arrive at the receiver.
///
/// # Errors
/// If another agent serves the same run directory, if others may write to that, or the socket
/// cannot be made.
pub fn serve(run_dir: &Path) -> Result<mpsc::Receiver<Call>> {
    std::fs::create_dir_all(run_dir).with_context(|| format!("creating {}", run_dir.display()))?;
    refuse_if_others_write(run_dir)?;
    let path = socket_path(run_dir);
    let name = path
        .to_str()
        .context("the run directory's path is not UTF-8")?
        .to_owned();
    let socket = listen::unix(None, &UnixAddr::Path(name), Mode::RUSR | Mode::WUSR)
        .context("opening the admin socket: is another agent running?")?;
    let (calls, receiver) = mpsc::channel(16);
    let clone = std::os::fd::AsFd::as_fd(&socket).try_clone_to_owned()?;
    let std_listener = std::os::unix::net::UnixListener::from(clone);
    std_listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(std_listener)?;
    tokio::spawn(async move {
        // Kept here for its file, which goes when the agent ends.
        let _socket = socket;
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
            let calls = calls.clone();
            tokio::spawn(async move {
                match tokio::time::timeout(PATIENCE, answer(stream, calls)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!("admin request: {error:#}"),
                    Err(error) => tracing::debug!("admin request: {error}"),
                }
            });
        }
    });
    Ok(receiver)
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

async fn answer(mut stream: tokio::net::UnixStream, calls: mpsc::Sender<Call>) -> Result<()> {
    let peer = stream.peer_cred().context("asking who has connected")?;
    let (reader, mut writer) = stream.split();
    let mut line = String::new();
    tokio::io::BufReader::new(reader.take(REQUEST_BYTES))
        .read_line(&mut line)
        .await?;
    let answer = match serde_json::from_str(&line) {
        _ if !may_ask(peer.uid()) => {
            let uid = peer.uid();
            tracing::warn!(uid, pid = peer.pid(), "admin socket: refused");
            Answer::Error(format!(
                "user {uid} may not ask this agent anything: only root and the agent's own user may"
            ))
        }
        Ok(request) => {
            let (reply, answer) = oneshot::channel();
            calls.send((request, reply)).await?;
            answer.await?
        }
        Err(error) => Answer::Error(format!("the request is not understood: {error}")),
    };
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    writer.write_all(&text).await?;
    Ok(())
}

/// Asks the agent with this run directory.
///
/// # Errors
/// If no agent answers there.
pub fn ask(run_dir: &Path, request: &Request) -> Result<Answer> {
    let path = socket_path(run_dir);
    let mut stream = UnixStream::connect(&path).with_context(|| {
        format!(
            "asking the agent at {}: is it running, are you root, is --run-dir the agent's?",
            path.display()
        )
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    serde_json::to_writer(&stream, request)?;
    stream.write_all(b"\n")?;
    let mut line = String::new();
    BufReader::new(stream)
        .read_line(&mut line)
        .context("reading the agent's answer")?;
    if line.is_empty() {
        bail!(
            "the agent at {} closed the connection without an answer",
            path.display()
        );
    }
    serde_json::from_str(&line)
        .context("the agent's answer is not understood: is it of another version?")
}
