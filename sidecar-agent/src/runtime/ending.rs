//! How an agent ends: what is left of it serves to the last connection, or goes on if the next agent
//! has not taken over.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
    time::timeout,
};

use super::{Options, handover, node::Node, relays::Paused, toggles::Toggles};
use crate::{
    dataplane::Dataplane,
    observe::{
        admin::{Admin, Answer, Taken},
        trace::Directory,
    },
    relay::Engine,
};

/// How long TCP listeners that the next agent has not taken are served still: for what was led to
/// them, and has not arrived yet.
const STRAGGLERS: Duration = Duration::from_secs(2);

/// Offers the next agent what it needs, and waits until it has taken it. `None`: it has not.
pub async fn hand_over(
    admin: &Admin,
    left: &Left,
    reply: oneshot::Sender<Answer>,
    taken: oneshot::Receiver<Taken>,
) -> Option<Taken> {
    let offer = handover::offer(admin.descriptor(), &left.paused);
    // Whether it is there is told by its confirmation.
    let _ = reply.send(Answer::Offer(offer));
    taken.await.ok()
}

/// What is left of an agent that follows no configuration any more.
pub struct Left {
    /// It still moves the bytes of live connections.
    pub engine: Engine,
    /// What operators have said.
    pub toggles: Toggles,
    /// The relay's listeners, by workload.
    pub paused: BTreeMap<String, Paused>,
    /// Who is who, for those who trace.
    pub directory: Directory,
}

impl Left {
    /// Goes on as before.
    pub fn go_on(self, options: &Options) -> Result<Node> {
        let dataplane = Dataplane::load(&options.dataplane())?;
        let paused = self.paused.into_iter();
        let sockets = paused.map(|(workload, paused)| (workload, paused.sockets));
        let (engine, toggles) = (self.engine, self.toggles);
        Node::start(
            dataplane,
            engine,
            toggles,
            sockets.collect(),
            self.directory,
        )
    }

    /// Ends after the next agent has taken over, which leaves this one its live connections only.
    pub async fn end_relieved(
        self,
        tcp: bool,
        options: &Options,
        signals: &mut Signals,
    ) -> Result<()> {
        if !options.await_stop {
            return self.end(tcp, options.drain, signals).await;
        }
        tracing::info!("relieved; waiting to be stopped");
        // Who stops this agent knows that the next one is there, and not of connections.
        self.end(tcp, options.drain, &mut Signals::second()?)
            .await?;
        signals.any().await;
        Ok(())
    }

    /// Ends with the last live connection, after `drain`, or with another signal.
    pub async fn end(self, tcp: bool, drain: Duration, signals: &mut Signals) -> Result<()> {
        if !tcp {
            for (_, paused) in self.paused {
                paused.serve_tcp(&self.engine);
            }
            let _ = timeout(STRAGGLERS, signals.any()).await;
        }
        let active = self.engine.stats().active;
        if active > 0 {
            tracing::info!(active, "waiting for relayed connections to end");
        }
        let engine = self.engine;
        let (done, drained) = oneshot::channel();
        // Not one of the runtime's, which would be waited for.
        std::thread::spawn(move || done.send(engine.shutdown(drain)));
        tokio::select! {
            cut = drained => match cut.context("the relay ended badly")? {
                0 => tracing::info!("ended"),
                cut => tracing::warn!(cut, "ended; relayed connections were reset"),
            },
            // The process ends, and with it everything.
            () = signals.any() => tracing::warn!("ended at once; relayed connections are reset"),
        }
        Ok(())
    }
}

/// The signals that end an agent.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// How many come before the one that counts.
    ignored: u32,
}

impl Signals {
    /// From now on they do not end the process by themselves.
    ///
    /// # Errors
    /// If the kernel does not let us wait for them.
    pub fn new() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("waiting for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("waiting for SIGINT")?,
            ignored: 0,
        })
    }

    /// The second one from now on.
    fn second() -> Result<Self> {
        Ok(Self {
            ignored: 1,
            ..Self::new()?
        })
    }

    /// Waits for one.
    pub async fn any(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
            }
            match self.ignored.checked_sub(1) {
                Some(left) => self.ignored = left,
                None => return,
            }
        }
    }
}
