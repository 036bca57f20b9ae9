//! Kernel pipes for splice(2), lent to a connection only while bytes are in them.

use std::os::fd::OwnedFd;

use rustix::{
    io::Errno,
    pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with},
};

/// Wanted capacity; what `fs.pipe-max-size` allows without privilege. The kernel allots memory for
/// bytes that are there, not for capacity.
const CAPACITY: usize = 1 << 20;

/// Idle pipes kept per thread.
const KEPT: usize = 32;

/// One pipe.
#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) read: OwnedFd,
    pub(super) write: OwnedFd,
    /// Bytes it can hold.
    pub(super) capacity: usize,
}

/// The empty pipes of one thread.
#[derive(Debug, Default)]
pub(super) struct Pipes(Vec<Pipe>);

impl Pipes {
    /// An empty pipe.
    pub(super) fn take(&mut self) -> Result<Pipe, Errno> {
        if let Some(pipe) = self.0.pop() {
            return Ok(pipe);
        }
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Refused where the user has many pipes already (fs.pipe-user-pages-soft): then the
        // default will do.
        let capacity = fcntl_setpipe_size(&write, CAPACITY)
            .or_else(|_| fcntl_getpipe_size(&write))
            .unwrap_or(1 << 12);
        Ok(Pipe {
            read,
            write,
            capacity,
        })
    }

    /// Whether some are kept.
    pub(super) fn are_kept(&self) -> bool {
        !self.0.is_empty()
    }

    /// Closes those that are kept.
    pub(super) fn close(&mut self) {
        self.0 = Vec::new();
    }

    /// Takes back a pipe, which must be empty.
    pub(super) fn put(&mut self, pipe: Pipe) {
        if self.0.len() < KEPT {
            self.0.push(pipe);
        }
    }
}
