//! The agent's side of the socket that plugins ask at. Root only, as the admin socket.

use std::{
    fs,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{MetadataExt as _, PermissionsExt as _},
            net::UnixListener as StdListener,
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use tokio::{
    io::{AsyncWriteExt as _, Interest},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};

use super::wire::{self, Reply, Request, socket_path};
use crate::root_socket::{accept, may_ask};

/// How long a plugin may take to say what it wants, and to read the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A request on its way to the agent's main loop.
#[derive(Debug)]
pub struct Call {
    /// What is asked.
    pub request: Request,
    /// The network namespace that came along.
    pub netns: Option<OwnedFd>,
    /// For the answer. Nobody waits for it any more when it is closed.
    pub reply: oneshot::Sender<Reply>,
}

/// The socket, served. Its file goes when it is dropped.
#[derive(Debug)]
pub struct Server {
    /// What is asked.
    pub calls: mpsc::Receiver<Call>,
    task: JoinHandle<()>,
    path: PathBuf,
    inode: u64,
}

impl Server {
    /// Serves the socket of this run directory, which [`Admin`](crate::observe::admin::Admin) has
    /// found to be ours alone. One of an agent before is replaced in one step: there is always one to
    /// connect to, and who had connected to that tries again.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn open(run_dir: &Path) -> Result<Self> {
        let path = socket_path(run_dir);
        let new = path.with_extension("new");
        let in_the_way = fs::remove_file(&new);
        if let Err(error) = in_the_way
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(error).with_context(|| format!("removing {}", new.display()));
        }
        let context = || format!("serving the CNI plugin at {}", path.display());
        let listener = StdListener::bind(&new).with_context(context)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).with_context(context)?;
        let inode = fs::metadata(&new).with_context(context)?.ino();
        listener.set_nonblocking(true).with_context(context)?;
        fs::rename(&new, &path).with_context(context)?;
        let listener = UnixListener::from_std(listener).with_context(context)?;
        let (sender, calls) = mpsc::channel(16);
        let talk = move |stream| talk(stream, sender.clone());
        Ok(Self {
            calls,
            task: tokio::spawn(accept("CNI", listener, talk)),
            path,
            inode,
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        // Unless it is the next agent's by now.
        if fs::metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

async fn talk(mut stream: UnixStream, calls: mpsc::Sender<Call>) -> Result<()> {
    let uid = stream
        .peer_cred()
        .context("asking who has connected")?
        .uid();
    if !may_ask(uid) {
        bail!("user {uid} may not ask");
    }
    let (line, netns) = timeout(PATIENCE, read(&stream)).await??;
    let answer = match serde_json::from_slice(&line) {
        Ok(request) => {
            let (reply, answer) = oneshot::channel();
            calls
                .send(Call {
                    request,
                    netns,
                    reply,
                })
                .await?;
            // The main loop knows how long it may take.
            answer.await.context("the agent ends")?
        }
        Err(error) => Reply::Refused(format!("the request is not understood: {error}")),
    };
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    timeout(PATIENCE, stream.write_all(&text)).await??;
    Ok(())
}

async fn read(stream: &UnixStream) -> Result<(Vec<u8>, Option<OwnedFd>)> {
    let (mut line, mut netns) = (Vec::new(), None);
    loop {
        stream.readable().await?;
        let received = stream.try_io(Interest::READABLE, || {
            wire::receive(stream, &mut line, &mut netns)
        });
        match received {
            Ok(true) => {}
            Ok(false) => return Ok((line, netns)),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
}
