//! Asking.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::Path,
};

use anyhow::{Context as _, Result, bail};

use super::{Answer, PATIENCE, Request, socket_path};

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
