//! rtnetlink within a namespace.

use anyhow::{Context as _, Result};
use rtnetlink::Handle;

use crate::dataplane::netns::Netns;

/// Runs `work` with a netlink socket of the namespace, on a thread of its own.
///
/// # Errors
/// If the namespace cannot be entered, or `work` fails.
pub fn within<T: Send>(
    netns: &Netns,
    work: impl AsyncFnOnce(Handle) -> Result<T> + Send,
) -> Result<T> {
    netns.run(|| {
        // The socket belongs to the namespace of the thread that opens it, which is this one.
        tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .context("starting a runtime for netlink")?
            .block_on(async {
                let (connection, handle, _) =
                    rtnetlink::new_connection().context("opening a netlink socket")?;
                let connection = tokio::spawn(connection);
                let done = work(handle).await;
                connection.abort();
                done
            })
    })?
}
