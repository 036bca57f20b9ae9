//! The handle: starts the threads, gives them listeners, asks for numbers.

use std::{
    num::NonZeroUsize,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{EventfdFlags, eventfd},
    io::{Errno, ioctl_fionbio},
    net::{SocketType, sockopt},
};

use super::{
    dial,
    error::{Cause, Error},
    listen::Listening,
    netns,
    route::{Namespaces, Routes, SocketName},
    stats::{Counters, Stats},
    token::Token,
    worker::Worker,
};

/// Most threads by default: the relay shares the node with what it serves.
const DEFAULT_THREADS: usize = 4;

/// Settings of an [`Engine`].
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Threads; by default the available cores, at most 4.
    pub threads: NonZeroUsize,
    /// Connections at once; those beyond are reset. Several threads that accept at the same moment
    /// may exceed it by one each. Default 65,536; each takes two descriptors.
    pub max_connections: usize,
    /// Time for one target to answer. Default 5 s.
    pub dial_timeout: Duration,
}

impl Default for EngineConfig {
    fn default() -> Self {
        let one = NonZeroUsize::MIN;
        let threads = thread::available_parallelism().unwrap_or(one);
        Self {
            threads: threads.min(NonZeroUsize::new(DEFAULT_THREADS).unwrap_or(one)),
            max_connections: 1 << 16,
            dial_timeout: Duration::from_secs(5),
        }
    }
}

/// What to serve.
pub struct ListenerSpec {
    /// The socket; made non-blocking here.
    pub socket: Listening,
    /// Where its targets are looked for.
    pub namespaces: Namespaces,
    /// Where its connections lead.
    pub routes: Arc<dyn Routes>,
}

/// Names a listener of an [`Engine`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerId {
    worker: usize,
    token: Token,
}

/// The relay of this process. Dropping it resets all connections; see [`Engine::shutdown`].
pub struct Engine {
    shared: Arc<Shared>,
    threads: Vec<thread::JoinHandle<usize>>,
}

/// What all threads know of each other.
pub(super) struct Shared {
    pub(super) max_connections: usize,
    pub(super) dial_timeout: Duration,
    pub(super) home: Arc<OwnedFd>,
    pub(super) mailboxes: Vec<Arc<Mailbox>>,
}

/// A thread as seen by the others.
pub(super) struct Mailbox {
    commands: Mutex<Vec<Command>>,
    /// Eventfd that wakes it.
    pub(super) wake: OwnedFd,
    pub(super) counters: Counters,
}

/// What a thread can be told.
pub(super) enum Command {
    /// Serve a new listener, and answer with its token.
    Add(Listening, Arc<Listener>, mpsc::Sender<Result<Token, Errno>>),
    /// Stop accepting, and hand the socket back.
    Remove(Token, mpsc::Sender<Listening>),
    /// Serve a connection that another thread accepted (and counted for this one).
    Serve(OwnedFd, Arc<Listener>),
    /// Accept nothing any more; end with the last connection, or at that time if there is one.
    Stop(Option<Instant>),
}

/// What connections need of their listener.
pub(super) struct Listener {
    pub(super) bound: SocketName,
    pub(super) namespaces: Namespaces,
    pub(super) routes: Arc<dyn Routes>,
}

impl Engine {
    /// Starts the threads.
    ///
    /// # Errors
    /// Where descriptors or threads cannot be had.
    pub fn start(config: &EngineConfig) -> Result<Self, Error> {
        let mailbox = |_| Mailbox::new().map(Arc::new);
        let mailboxes = (0..config.threads.get())
            .map(mailbox)
            .collect::<Result<_, _>>();
        let shared = Arc::new(Shared {
            max_connections: config.max_connections,
            dial_timeout: config.dial_timeout,
            home: Arc::new(netns::current()?),
            mailboxes: mailboxes.map_err(cannot_start)?,
        });
        // An engine from here on, so that what was started is stopped when the rest fails.
        let mut engine = Self {
            shared,
            threads: Vec::new(),
        };
        for index in 0..config.threads.get() {
            let Some(own) = engine.shared.mailboxes.get(index).cloned() else {
                break;
            };
            let worker = Worker::new(Arc::clone(&engine.shared), own).map_err(cannot_start)?;
            let builder = thread::Builder::new().name(format!("relay-{index}"));
            let thread = builder.spawn(move || worker.run()).map_err(|error| {
                cannot_start(
                    error
                        .raw_os_error()
                        .map_or(Errno::AGAIN, Errno::from_raw_os_error),
                )
            })?;
            engine.threads.push(thread);
        }
        Ok(engine)
    }

    /// Serves a listener. Not to be called from a [`Routes`].
    ///
    /// # Errors
    /// Where the socket is no listening stream socket, or cannot be watched.
    pub fn add(&self, spec: ListenerSpec) -> Result<ListenerId, Error> {
        let ListenerSpec {
            socket,
            namespaces,
            routes,
        } = spec;
        let bound = socket.local().unwrap_or(SocketName::Unnamed);
        let object = format!("{bound:?}");
        let failed = |errno| Error::new(SERVE, &*object, errno, "see the limits of the system");
        if !is_listening(&socket).map_err(failed)? {
            let cause = Cause::Unusable("it is no listening stream socket");
            return Err(Error::new(
                SERVE,
                object,
                cause,
                "pass one that listen(2) was called on",
            ));
        }
        ioctl_fionbio(&socket, true).map_err(failed)?;
        if matches!(bound, SocketName::Tcp(_)) {
            dial::tune_tcp(socket.as_fd()).map_err(failed)?;
        }
        let worker = self.least_listeners();
        let listener = Arc::new(Listener {
            bound,
            namespaces,
            routes,
        });
        let (answer, answered) = mpsc::channel();
        self.tell(worker, Command::Add(socket, listener, answer));
        let token = answered
            .recv()
            .unwrap_or(Err(Errno::CANCELED))
            .map_err(failed)?;
        Ok(ListenerId { worker, token })
    }

    /// Stops accepting. Connections that waited in the backlog are served still; live ones go on.
    /// The socket is handed back: dropping it closes it (and removes a unix socket's file); `None`
    /// where the listener was removed before. Not to be called from a [`Routes`].
    #[must_use = "dropping the socket closes it; it can be served elsewhere instead"]
    pub fn remove(&self, id: ListenerId) -> Option<Listening> {
        let (answer, answered) = mpsc::channel();
        self.tell(id.worker, Command::Remove(id.token, answer));
        answered.recv().ok()
    }

    /// The numbers of all threads.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        for mailbox in &self.shared.mailboxes {
            mailbox.counters.add_to(&mut stats);
        }
        stats
    }

    /// Closes all listeners, waits until the last connection has ended, at most `grace`, and
    /// resets what is left; the number of those.
    #[must_use]
    pub fn shutdown(mut self, grace: Duration) -> usize {
        // A grace beyond what the clock can express has no end.
        self.stop(Instant::now().checked_add(grace))
    }

    fn stop(&mut self, deadline: Option<Instant>) -> usize {
        for worker in 0..self.threads.len() {
            self.tell(worker, Command::Stop(deadline));
        }
        self.threads
            .drain(..)
            .map(|thread| thread.join().unwrap_or(0))
            .sum()
    }

    fn tell(&self, worker: usize, command: Command) {
        if let Some(mailbox) = self.shared.mailboxes.get(worker) {
            mailbox.put(command);
        }
    }

    /// The thread that watches the fewest listeners; the first of them.
    fn least_listeners(&self) -> usize {
        let load = |&index: &usize| {
            self.shared
                .mailboxes
                .get(index)
                .map_or(u64::MAX, |it| it.counters.listeners.get())
        };
        (0..self.shared.mailboxes.len())
            .min_by_key(load)
            .unwrap_or(0)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop(Some(Instant::now()));
    }
}

impl Mailbox {
    fn new() -> Result<Self, Errno> {
        Ok(Self {
            commands: Mutex::default(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            counters: Counters::default(),
        })
    }

    pub(super) fn put(&self, command: Command) {
        let mut commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        commands.push(command);
        // It fails only where the counter is at its end, and then the thread is woken already.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Exchanges the waiting commands for `empty`, whose memory is used again.
    pub(super) fn take(&self, empty: &mut Vec<Command>) {
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        let mut commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut *commands, empty);
    }
}

const SERVE: &str = "serve listener";

fn cannot_start(errno: Errno) -> Error {
    Error::new(
        "start",
        "the relay",
        errno,
        "raise the limits of descriptors and threads",
    )
}

fn is_listening(socket: &Listening) -> Result<bool, Errno> {
    Ok(sockopt::socket_type(socket)? == SocketType::STREAM && sockopt::socket_acceptconn(socket)?)
}
