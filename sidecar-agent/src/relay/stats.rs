//! What the relay counts.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use rustix::io::Errno;

/// Totals over all threads since the engine started, except `active`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections accepted and not yet ended, now.
    pub active: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Of these, refused by the route.
    pub refused: u64,
    /// Of these, refused because of the connection limit.
    pub limited: u64,
    /// Of these, refused because no target could be connected, by the last target's cause.
    pub failed: FailedDials,
    /// Of these, led to where they were going because no target could be connected.
    pub fell_back: u64,
    /// Of these, ended by a reset or another error of either side after both were connected.
    pub reset: u64,
    /// accept(2) failures other than "nothing there" and "gone again"; accepting on that listener
    /// paused after each.
    pub accept_errors: u64,
    /// Bytes delivered to targets.
    pub bytes_to_target: u64,
    /// Bytes delivered to clients.
    pub bytes_to_client: u64,
    /// Of the bytes in both directions, those that went through a kernel pipe.
    pub bytes_spliced: u64,
}

/// Connections that found no target, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FailedDials {
    /// Nobody listens (`ECONNREFUSED`).
    pub refused: u64,
    /// No answer in time, ours or the kernel's.
    pub timed_out: u64,
    /// No way there (`EHOSTUNREACH`, `ENETUNREACH`, `ENETDOWN`, `EADDRNOTAVAIL`).
    pub unreachable: u64,
    /// The unix socket's path does not exist.
    pub missing: u64,
    /// Not allowed (`EACCES`, `EPERM`).
    pub denied: u64,
    /// Out of descriptors or memory.
    pub exhausted: u64,
    /// Anything else, a route without targets among them.
    pub other: u64,
}

impl FailedDials {
    /// All causes together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.by_cause().into_iter().map(|(_, count)| count).sum()
    }

    /// Each cause with its name in output and metrics.
    #[must_use]
    pub fn by_cause(&self) -> [(&'static str, u64); 7] {
        let Self {
            refused,
            timed_out,
            unreachable,
            missing,
            denied,
            exhausted,
            other,
        } = *self;
        [
            ("refused", refused),
            ("timed-out", timed_out),
            ("unreachable", unreachable),
            ("missing", missing),
            ("denied", denied),
            ("exhausted", exhausted),
            ("other", other),
        ]
    }
}

/// What the connections come to that are led by one listener of a plan; added to by all threads.
#[derive(Debug, Default)]
pub struct Tally {
    active: Counter,
    accepted: Counter,
    pub(super) bytes_to_target: Counter,
    pub(super) bytes_to_client: Counter,
}

/// A [`Tally`], read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tallied {
    /// Connections not yet ended, now.
    pub active: u64,
    /// Connections so far.
    pub accepted: u64,
    /// Bytes delivered to targets.
    pub bytes_to_target: u64,
    /// Bytes delivered to clients.
    pub bytes_to_client: u64,
}

impl Tally {
    /// What it has come to.
    #[must_use]
    pub fn read(&self) -> Tallied {
        Tallied {
            active: self.active.get(),
            accepted: self.accepted.get(),
            bytes_to_target: self.bytes_to_target.get(),
            bytes_to_client: self.bytes_to_client.get(),
        }
    }
}

/// A connection that is counted in a [`Tally`], until this is dropped.
#[derive(Debug)]
pub(super) struct Tallying(Arc<Tally>);

impl Tallying {
    pub(super) fn new(tally: Arc<Tally>) -> Self {
        tally.accepted.add(1);
        tally.active.add(1);
        Self(tally)
    }
}

impl Deref for Tallying {
    type Target = Tally;

    fn deref(&self) -> &Tally {
        &self.0
    }
}

impl Drop for Tallying {
    fn drop(&mut self) {
        self.0.active.sub(1);
    }
}

/// The counters of one thread: written by it, read by anybody.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Listeners watched now.
    pub(super) listeners: Counter,
    /// Connections given to this thread and not ended.
    pub(super) active: Counter,
    pub(super) accepted: Counter,
    pub(super) refused: Counter,
    pub(super) limited: Counter,
    pub(super) fell_back: Counter,
    pub(super) reset: Counter,
    pub(super) accept_errors: Counter,
    pub(super) bytes_to_target: Counter,
    pub(super) bytes_to_client: Counter,
    pub(super) bytes_spliced: Counter,
    failed: FailedCounters,
}

#[derive(Debug, Default)]
struct FailedCounters {
    refused: Counter,
    timed_out: Counter,
    unreachable: Counter,
    missing: Counter,
    denied: Counter,
    exhausted: Counter,
    other: Counter,
}

/// A number that only ever serves statistics and load, so never orders other memory.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    pub(super) fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Counters {
    /// Counts a connection that found no target.
    pub(super) fn dial_failed(&self, cause: Errno) {
        let failed = &self.failed;
        match cause {
            Errno::CONNREFUSED => &failed.refused,
            Errno::TIMEDOUT => &failed.timed_out,
            Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::NETDOWN | Errno::ADDRNOTAVAIL => {
                &failed.unreachable
            }
            Errno::NOENT | Errno::NOTDIR => &failed.missing,
            Errno::ACCESS | Errno::PERM => &failed.denied,
            Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::NOSPC => {
                &failed.exhausted
            }
            _ => &failed.other,
        }
        .add(1);
    }

    /// Adds these counters to `stats`.
    pub(super) fn add_to(&self, stats: &mut Stats) {
        stats.active += self.active.get();
        stats.accepted += self.accepted.get();
        stats.refused += self.refused.get();
        stats.limited += self.limited.get();
        stats.fell_back += self.fell_back.get();
        stats.reset += self.reset.get();
        stats.accept_errors += self.accept_errors.get();
        stats.bytes_to_target += self.bytes_to_target.get();
        stats.bytes_to_client += self.bytes_to_client.get();
        stats.bytes_spliced += self.bytes_spliced.get();
        let (to, from) = (&mut stats.failed, &self.failed);
        to.refused += from.refused.get();
        to.timed_out += from.timed_out.get();
        to.unreachable += from.unreachable.get();
        to.missing += from.missing.get();
        to.denied += from.denied.get();
        to.exhausted += from.exhausted.get();
        to.other += from.other.get();
    }
}
