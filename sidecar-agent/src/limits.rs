//! What the agent's process may have of the system. A limit that cannot be raised stays as it is:
//! `doctor` shows it, and what meets it says so.

use std::io;

use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    io::{Errno, fcntl_dupfd_cloexec},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};
use thiserror::Error;

/// Why no more descriptors can be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Exhausted {
    /// `EMFILE`.
    #[error(
        "the agent has no file descriptors left (RLIMIT_NOFILE {limit}): raise LimitNOFILE= of its \
         systemd unit, or `ulimit -n`, and restart it; it is tried again by itself"
    )]
    Process {
        /// The limit that was reached.
        limit: u64,
    },
    /// `ENFILE`.
    #[error(
        "the machine has no file descriptors left (fs.file-max): raise it by sysctl; it is tried \
         again by itself"
    )]
    Machine,
}

impl Exhausted {
    /// What an error of the system says of descriptors.
    #[must_use]
    pub fn of(errno: Errno) -> Option<Self> {
        let limit = || getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        match errno {
            Errno::MFILE => Some(Self::Process { limit: limit() }),
            Errno::NFILE => Some(Self::Machine),
            _ => None,
        }
    }

    /// As [`explain`](Self::explain), of an error of the system.
    #[must_use]
    pub fn explain_io(error: io::Error) -> io::Error {
        match Errno::from_io_error(&error).and_then(Self::of) {
            Some(exhausted) => io::Error::new(error.kind(), format!("{error}: {exhausted}")),
            None => error,
        }
    }

    /// Says why, and what to do, where the cause of an error is that there are no descriptors.
    #[must_use]
    pub fn explain(error: anyhow::Error) -> anyhow::Error {
        let errno = |cause: &(dyn std::error::Error + 'static)| {
            let of_io = cause.downcast_ref().and_then(Errno::from_io_error);
            of_io.or_else(|| cause.downcast_ref().copied())
        };
        let is_explained = error.chain().any(<dyn std::error::Error>::is::<Self>);
        match error.chain().filter_map(errno).find_map(Self::of) {
            Some(exhausted) if !is_explained => anyhow::anyhow!("{error:#}: {exhausted}"),
            _ => error,
        }
    }
}

/// Whether so many descriptors more could be opened right now. It costs far less than to find out
/// in the middle of what needs them.
///
/// # Errors
/// If not: why.
pub fn check_descriptors(more: usize) -> Result<(), Exhausted> {
    let take = || {
        let first = openat(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let others = (1..more).map(|_| fcntl_dupfd_cloexec(&first, 0));
        others.collect::<Result<Vec<_>, Errno>>()
    };
    match take().err().and_then(Exhausted::of) {
        Some(exhausted) => Err(exhausted),
        None => Ok(()),
    }
}

/// Raises the limits that the agent would meet on a busy node. To be called before capabilities are
/// given up.
pub fn raise() {
    // Every workload takes two descriptors, every relayed connection some, and the usual 1024 are
    // what programs get that cannot do with more.
    let files = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: files.maximum,
        ..files
    };
    set(Resource::Nofile, most, "RLIMIT_NOFILE");
    // Before kernel 5.11 maps count as locked memory; later ones do not care. Needs
    // CAP_SYS_RESOURCE, which is gone when aya would raise it.
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    set(Resource::Memlock, unlimited, "RLIMIT_MEMLOCK");
}

fn set(resource: Resource, limit: Rlimit, name: &str) {
    if let Err(error) = setrlimit(resource, limit) {
        tracing::debug!("raising {name}: {error}");
    }
}
