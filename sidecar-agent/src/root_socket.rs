//! What the agent's unix sockets have in common: only root and the agent's own user may ask there.

use std::time::Duration;

use anyhow::Result;
use rustix::process::geteuid;
use tokio::{
    net::{UnixListener, UnixStream},
    time::sleep,
};

/// How long to wait after a failed accept.
const RETRY: Duration = Duration::from_millis(100);

/// Root, and the user that the agent runs as.
pub fn may_ask(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}

/// Serves everybody who connects, each by a task of its own; `name`: the socket's, for the log. Never
/// ends.
pub async fn accept<F>(name: &'static str, listener: UnixListener, talk: impl Fn(UnixStream) -> F)
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let talk = talk(stream);
                tokio::spawn(async move {
                    if let Err(error) = talk.await {
                        tracing::debug!("{name} request: {error:#}");
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, mostly: the next try may find some.
                tracing::warn!("{name} socket: {error}");
                sleep(RETRY).await;
            }
        }
    }
}
