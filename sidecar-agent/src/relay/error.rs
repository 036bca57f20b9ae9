//! What can go wrong outside a connection: starting, listening, entering a namespace.

use std::fmt;

use rustix::io::Errno;

use crate::limits::Exhausted;

/// An operation of the relay that failed.
#[derive(Debug)]
pub struct Error {
    /// What was attempted, as a verb and its object's kind: `listen on unix socket`.
    pub operation: &'static str,
    /// On what: an address, a path.
    pub object: String,
    /// Why it failed.
    pub cause: Cause,
    /// What the operator can do.
    pub remedy: String,
}

/// Why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The kernel said so.
    System(Errno),
    /// The path is taken by something that is not ours to remove; what it is.
    Occupied(&'static str),
    /// The caller passed something unusable; what is wrong with it.
    Unusable(&'static str),
}

impl Error {
    pub(super) fn new(
        operation: &'static str,
        object: impl Into<String>,
        cause: impl Into<Cause>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            operation,
            object: object.into(),
            cause: cause.into(),
            remedy: remedy.into(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            operation,
            object,
            cause,
            remedy,
        } = self;
        match cause {
            Cause::System(errno) if let Some(exhausted) = Exhausted::of(*errno) => {
                write!(f, "cannot {operation} {object}: {cause}: {exhausted}")
            }
            _ => write!(f, "cannot {operation} {object}: {cause}; {remedy}"),
        }
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System(errno) => errno.fmt(f),
            Self::Occupied(by) => write!(f, "{by} is in the way"),
            Self::Unusable(why) => f.write_str(why),
        }
    }
}

impl From<Errno> for Cause {
    fn from(errno: Errno) -> Self {
        Self::System(errno)
    }
}
