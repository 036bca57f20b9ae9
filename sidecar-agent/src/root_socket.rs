//! What the agent's unix sockets have in common: only root and the agent's own user may ask there.

use std::{os::fd::OwnedFd, sync::Arc, time::Duration};

use anyhow::Result;
use rustix::{io::fcntl_dupfd_cloexec, process::geteuid};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Notify,
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
    // Given up when there are no descriptors left: that is when somebody asks what is wrong. Taken
    // again as soon as that is answered.
    let reserve = || -> Option<OwnedFd> { fcntl_dupfd_cloexec(&listener, 0).ok() };
    let mut spare = reserve();
    let answered = Arc::new(Notify::new());
    loop {
        let accepted = tokio::select! {
            // Whoever waits comes before the next spare one: it was given up for them.
            biased;
            accepted = listener.accept() => accepted,
            () = answered.notified(), if spare.is_none() => {
                spare = reserve();
                continue;
            }
        };
        match accepted {
            Ok((stream, _)) => {
                let talk = talk(stream);
                let answered = Arc::clone(&answered);
                tokio::spawn(async move {
                    if let Err(error) = talk.await {
                        tracing::debug!("{name} request: {error:#}");
                    }
                    answered.notify_one();
                });
            }
            // Out of descriptors, mostly.
            Err(_) if spare.take().is_some() => {}
            Err(error) => {
                // The next try may find some.
                tracing::warn!("{name} socket: {error}");
                sleep(RETRY).await;
                spare = reserve();
            }
        }
    }
}
