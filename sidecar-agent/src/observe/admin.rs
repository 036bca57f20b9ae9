//! The admin socket: one request, one answer, both a line of JSON. Root only.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::fs::Mode;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, unix::WriteHalf},
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{
    status::Status,
    trace::{self, Filter, Hub},
};
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
/// If another agent serves the same run directory, or the socket cannot be made.
pub fn serve(run_dir: &Path, traces: Hub) -> Result<mpsc::Receiver<Call>> {
    std::fs::create_dir_all(run_dir).with_context(|| format!("creating {}", run_dir.display()))?;
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
            let (calls, traces) = (calls.clone(), traces.clone());
            tokio::spawn(async move {
                if let Err(error) = talk(stream, calls, &traces).await {
                    tracing::debug!("admin request: {error:#}");
                }
            });
        }
    });
    Ok(receiver)
}

/// Serves one connection. Nobody is waited for but whoever traces.
async fn talk(
    mut stream: tokio::net::UnixStream,
    calls: mpsc::Sender<Call>,
    traces: &Hub,
) -> Result<()> {
    let (mut reader, writer) = stream.split();
    let mut line = String::new();
    let mut request = tokio::io::BufReader::new((&mut reader).take(REQUEST_BYTES));
    timeout(PATIENCE, request.read_line(&mut line)).await??;
    if let Some(filter) = filter(&line) {
        return trace::serve(traces, filter, reader, writer).await;
    }
    timeout(PATIENCE, answer(&line, writer, calls)).await?
}

/// What is to be traced, if this is such a request.
fn filter(line: &str) -> Option<Filter> {
    let mut request: BTreeMap<String, Filter> = serde_json::from_str(line).ok()?;
    request.remove(trace::REQUEST)
}

async fn answer(line: &str, mut writer: WriteHalf<'_>, calls: mpsc::Sender<Call>) -> Result<()> {
    let answer = match serde_json::from_str(line) {
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
    let mut stream = UnixStream::connect(&path).with_context(|| no_agent(&path))?;
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
