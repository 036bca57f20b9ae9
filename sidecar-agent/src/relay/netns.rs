//! Working inside another network namespace.
//!
//! A socket belongs to the namespace it was made in, for good: only making it needs a visit.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    thread,
};

use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    io::Errno,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use super::error::{Cause, Error};

/// Runs `f` inside the network namespace `netns` (an open `/proc/<pid>/ns/net` or a bind mount of
/// one), on a thread of its own that ends with it.
///
/// # Errors
/// Where the namespace cannot be entered (`CAP_SYS_ADMIN` is needed), or `f`'s own.
pub fn within<T, E>(netns: BorrowedFd<'_>, f: impl FnOnce() -> Result<T, E> + Send) -> Result<T, E>
where
    T: Send,
    E: From<Error> + Send,
{
    let visit = || {
        enter(netns).map_err(|errno| {
            Error::new(
                "enter network namespace",
                format!("of descriptor {netns:?}"),
                errno,
                "CAP_SYS_ADMIN is needed, and a descriptor of a network namespace",
            )
        })?;
        f()
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, visit);
        let unusable = |cause, remedy: &str| Error::new("run", "in a thread", cause, remedy);
        let thread = thread.map_err(|error| {
            let errno = error
                .raw_os_error()
                .map_or(Errno::AGAIN, Errno::from_raw_os_error);
            unusable(
                Cause::System(errno),
                "raise the limit of threads (TasksMax, pids.max)",
            )
        })?;
        thread.join().unwrap_or_else(|_| {
            Err(unusable(Cause::Unusable("it panicked"), "report this as a defect").into())
        })
    })
}

fn enter(netns: BorrowedFd<'_>) -> Result<(), Errno> {
    move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))
}

/// The network namespace of the calling thread.
pub(super) fn current() -> Result<OwnedFd, Error> {
    let path = "/proc/thread-self/ns/net";
    openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Error::new("open", path, errno, "/proc must be mounted"))
}

/// Which network namespace a worker thread is in.
#[derive(Debug)]
pub(super) struct Visitor {
    home: Arc<OwnedFd>,
    visited: Option<Arc<OwnedFd>>,
}

impl Visitor {
    pub(super) fn new(home: Arc<OwnedFd>) -> Self {
        Self {
            home,
            visited: None,
        }
    }

    /// Puts the calling thread into `netns`; `None`: home. Nothing to do where it is there.
    pub(super) fn enter(&mut self, netns: Option<&Arc<OwnedFd>>) -> Result<(), Errno> {
        if self.visited.as_ref().map(Arc::as_ptr) == netns.map(Arc::as_ptr) {
            return Ok(());
        }
        enter(netns.unwrap_or(&self.home).as_fd())?;
        self.visited = netns.cloned();
        Ok(())
    }

    /// Goes home: a thread that stays keeps the namespace of a workload that has ended alive.
    pub(super) fn leave(&mut self) {
        if let Err(errno) = self.enter(None) {
            // Every later visit tries again, so nothing is dialed from the wrong namespace.
            tracing::error!(%errno, "relay: cannot return to the agent's network namespace");
        }
    }
}
