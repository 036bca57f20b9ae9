//! The task that reads the ring, and its clients.

use std::{
    ops::ControlFlow,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sidecar_common::Event;
use tokio::{
    io::unix::AsyncFd,
    sync::{mpsc, oneshot},
};

use super::{
    directory::{Directory, boot_time},
    filter::Filter,
    record::Record,
};
use crate::dataplane::Tap;

/// Most clients at a time.
const CLIENTS: usize = 16;
/// Decisions that wait for one client; further ones are lost to it.
const QUEUE: usize = 1024;
/// Decisions taken from the ring before others have their turn.
const BATCH: usize = 256;

/// Decisions that a client did not get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// They found the kernel's ring full.
    pub kernel: u64,
    /// They found the client's queue full.
    pub agent: u64,
}

/// Where clients come to.
#[derive(Clone, Default)]
pub struct Hub(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// To the task that reads; not there before programs are loaded.
    commands: OnceLock<mpsc::UnboundedSender<Command>>,
    clients: AtomicUsize,
    /// Over all clients that there were.
    lost: AtomicU64,
}

/// What the task is told. As many wait as there are clients, at most, times the kinds.
enum Command {
    Join(Client, oneshot::Sender<Result<()>>),
    /// A client asks what was lost to it, with all that was decided so far.
    Lost(u64, oneshot::Sender<Lost>),
    Leave(u64),
}

struct Client {
    id: u64,
    filter: Filter,
    queue: mpsc::Sender<Arc<str>>,
    /// What the kernel had lost when it came.
    before: u64,
    lost: u64,
    /// When it came: what is older is none of its business.
    since: u64,
}

/// A client's end. Dropping it leaves.
pub struct Subscription {
    id: u64,
    /// Decisions, as JSON.
    pub decisions: mpsc::Receiver<Arc<str>>,
    hub: Hub,
}

impl Hub {
    /// Begins to serve clients.
    ///
    /// # Errors
    /// If the ring cannot be watched.
    pub fn open(&self, tap: Tap, directory: Directory) -> Result<()> {
        let tap = tap.watch()?;
        let (commands, receiver) = mpsc::unbounded_channel();
        let reader = Reader {
            tap,
            directory,
            clients: Vec::new(),
            hub: self.clone(),
        };
        if self.0.commands.set(commands).is_err() {
            bail!("decisions are read already");
        }
        tokio::spawn(reader.run(receiver));
        Ok(())
    }

    /// How many clients there are.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.0.clients.load(Relaxed)
    }

    /// Decisions lost to clients in the agent, all together.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.0.lost.load(Relaxed)
    }

    /// Becomes a client. Every decision made after this returns is in its queue, or counted as lost.
    ///
    /// # Errors
    /// If there are too many, or programs are not loaded.
    pub async fn subscribe(&self, filter: Filter) -> Result<Subscription> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let (queue, decisions) = mpsc::channel(QUEUE);
        let id = NEXT.fetch_add(1, Relaxed);
        let client = Client {
            id,
            filter,
            queue,
            before: 0,
            lost: 0,
            since: 0,
        };
        let (reply, answer) = oneshot::channel();
        self.tell(Command::Join(client, reply))?;
        // From here on, it leaves whatever happens.
        let subscription = Subscription {
            id,
            decisions,
            hub: self.clone(),
        };
        answer.await.context("decisions are read no more")??;
        Ok(subscription)
    }

    fn tell(&self, command: Command) -> Result<()> {
        let commands = self.0.commands.get();
        let commands = commands.context("the programs are not loaded yet; try again")?;
        if commands.send(command).is_err() {
            bail!("decisions are read no more");
        }
        Ok(())
    }
}

impl Subscription {
    /// What was lost to it so far. What was decided before is in its queue after this.
    ///
    /// # Errors
    /// If decisions are read no more.
    pub async fn lost(&self) -> Result<Lost> {
        let (reply, answer) = oneshot::channel();
        self.hub.tell(Command::Lost(self.id, reply))?;
        answer.await.context("decisions are read no more")
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        // If nobody hears it, nobody traces either.
        let _ = self.hub.tell(Command::Leave(self.id));
    }
}

/// The task.
struct Reader {
    tap: AsyncFd<Tap>,
    directory: Directory,
    clients: Vec<Client>,
    hub: Hub,
}

impl Reader {
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        loop {
            tokio::select! {
                // A flood of decisions must not keep clients from leaving.
                biased;
                command = commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return,
                },
                ready = self.tap.readable_mut() => {
                    let Ok(mut ready) = ready else {
                        return;
                    };
                    let tap = ready.get_inner_mut();
                    if deliver(tap, &self.directory, &mut self.clients, &self.hub).is_continue() {
                        ready.clear_ready();
                    }
                }
            }
            tokio::task::yield_now().await;
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Join(client, reply) => {
                let joined = self.join(client);
                self.count();
                let _ = reply.send(joined);
            }
            Command::Lost(id, reply) => {
                // As much as the ring holds, at most: programs may be adding to it all the time.
                self.drain();
                let kernel = self.tap.get_ref().lost().unwrap_or_default();
                let lost = self.clients.iter().find(|of| of.id == id).map(|of| Lost {
                    kernel: kernel.saturating_sub(of.before),
                    agent: of.lost,
                });
                let _ = reply.send(lost.unwrap_or_default());
            }
            Command::Leave(id) => {
                self.clients.retain(|of| of.id != id);
                self.count();
                if self.clients.is_empty()
                    && let Err(error) = self.tap.get_mut().switch(false)
                {
                    tracing::warn!("{error:#}");
                }
            }
        }
    }

    fn join(&mut self, mut client: Client) -> Result<()> {
        if self.clients.len() >= CLIENTS {
            bail!("{CLIENTS} clients trace already; end one");
        }
        if self.clients.is_empty() {
            // What the clients before have left.
            self.drain();
            self.tap.get_mut().switch(true)?;
        }
        client.before = self.tap.get_ref().lost()?;
        client.since = boot_time();
        self.clients.push(client);
        Ok(())
    }

    fn drain(&mut self) {
        // The ring holds fewer than this many batches.
        for _ in 0..64 {
            let tap = self.tap.get_mut();
            if deliver(tap, &self.directory, &mut self.clients, &self.hub).is_continue() {
                return;
            }
        }
    }

    fn count(&self) {
        self.hub.0.clients.store(self.clients.len(), Relaxed);
    }
}

/// Hands a batch of decisions to whoever wants them. `Continue`: the ring is empty.
fn deliver(
    tap: &mut Tap,
    directory: &Directory,
    clients: &mut [Client],
    hub: &Hub,
) -> ControlFlow<()> {
    for _ in 0..BATCH {
        let Some(event) = tap.take() else {
            return ControlFlow::Continue(());
        };
        if !clients.is_empty() {
            hand_out(&event, directory, clients, hub);
        }
    }
    ControlFlow::Break(())
}

fn hand_out(event: &Event, directory: &Directory, clients: &mut [Client], hub: &Hub) {
    let Some(record) = Record::of(event, directory) else {
        return;
    };
    // Made once, and only if somebody wants it.
    let mut text: Option<Arc<str>> = None;
    for client in clients {
        if event.time < client.since || !client.filter.matches(&record) {
            continue;
        }
        let text = text.get_or_insert_with(|| {
            // Strings and numbers only, so there is nothing that JSON could not hold.
            serde_json::to_string(&record).unwrap_or_default().into()
        });
        if client.queue.try_send(Arc::clone(text)).is_err() {
            client.lost += 1;
            hub.0.lost.fetch_add(1, Relaxed);
        }
    }
}
