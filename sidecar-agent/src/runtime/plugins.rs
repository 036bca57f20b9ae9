//! CNI plugins that ask: what they tell of a pod's sandbox is noted, and they are answered once that pod
//! is captured, is known to be none that is, or has waited long enough.

use std::{
    fs::File,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;
use tokio::{
    sync::oneshot,
    time::{Interval, MissedTickBehavior, interval},
};

use crate::{
    cni::{
        server::{Call, Server},
        wire::{PodRef, Reply, Request},
    },
    dataplane::netns::Netns,
    source::pods::{Pods, find::Sandbox},
};

/// How often it is looked whether those that wait can be answered, where nothing else happens: what
/// they wait for is mostly the API server's word that there is such a pod.
const LOOK: Duration = Duration::from_millis(50);

/// Those who ask.
pub struct Plugins {
    server: Option<Server>,
    waiting: Vec<Waiting>,
    looks: Interval,
}

/// How it stands with a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// What is wanted of it is in force in this network namespace, by its name.
    InForce(String),
    /// It is none to be captured: why.
    Left(String),
    /// Not yet: why.
    NotYet(String),
}

struct Waiting {
    pod: PodRef,
    /// The network namespace that is to be captured; `None`: whichever is the pod's.
    sandbox: Option<Sandbox>,
    noted: bool,
    until: Instant,
    reply: oneshot::Sender<Reply>,
}

impl Plugins {
    /// Nothing is served yet.
    pub fn new() -> Self {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            server: None,
            waiting: Vec::new(),
            looks,
        }
    }

    /// Serves the socket of this run directory, unless it is served already.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn serve(&mut self, run_dir: &Path) -> Result<()> {
        if self.server.is_none() {
            self.server = Some(Server::open(run_dir)?);
        }
        Ok(())
    }

    /// The next call, or `None` when it is time to look again whether those that wait can be answered.
    pub async fn called(&mut self) -> Option<Call> {
        let Some(server) = &mut self.server else {
            return std::future::pending().await;
        };
        if self.waiting.is_empty() {
            return server.calls.recv().await;
        }
        tokio::select! {
            call = server.calls.recv() => call,
            _ = self.looks.tick() => None,
        }
    }

    /// Takes a call in.
    pub fn take(&mut self, call: Call, pods: &mut Pods) {
        let Call {
            request,
            netns,
            reply,
        } = call;
        let netns = netns.map(|netns| Netns::hold(File::from(netns)));
        let refuse = |reply: oneshot::Sender<Reply>, why: String| {
            // The plugin may have gone away.
            let _ = reply.send(Reply::Refused(why));
        };
        match (request, netns) {
            (_, Some(Err(error))) => refuse(reply, format!("{error:#}")),
            (Request::Add { .. }, None) => {
                refuse(reply, "no network namespace came along".to_owned());
            }
            (
                Request::Add {
                    pod,
                    addresses,
                    patience,
                },
                Some(Ok(netns)),
            ) => {
                if Netns::open(None).is_ok_and(|host| host.id == netns.id) {
                    let _ = reply.send(Reply::Left("it is in the host's network namespace".into()));
                    return;
                }
                self.waiting.push(Waiting {
                    pod,
                    sandbox: Some(Sandbox { netns, addresses }),
                    noted: false,
                    until: Instant::now() + Duration::from_millis(patience),
                    reply,
                });
            }
            (Request::Check { pod }, _) => {
                self.waiting.push(Waiting {
                    pod,
                    sandbox: None,
                    noted: true,
                    until: Instant::now(),
                    reply,
                });
            }
            (Request::Del { pod }, netns) => {
                if let (Some(uid), Some(Ok(netns))) = (&pod.uid, netns) {
                    pods.forget(uid, netns.id);
                }
                let _ = reply.send(Reply::Done);
            }
        }
    }

    /// The pods that are waited for.
    pub fn waiting(&self) -> impl Iterator<Item = &PodRef> {
        self.waiting.iter().map(|waiting| &waiting.pod)
    }

    /// Whether anybody waits.
    pub fn is_waited_for(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Notes sandboxes of pods that are known now; `uid`: of a pod, as the API server has it. `true`:
    /// there were some.
    pub fn note(&mut self, pods: &mut Pods, uid: impl Fn(&PodRef) -> Option<String>) -> bool {
        let mut any = false;
        for waiting in &mut self.waiting {
            if let Some(sandbox) = &waiting.sandbox
                && !waiting.noted
                && let Some(uid) = waiting.pod.uid.clone().or_else(|| uid(&waiting.pod))
            {
                pods.note(&uid, sandbox.clone());
                waiting.noted = true;
                any = true;
            }
        }
        any
    }

    /// Answers those who can be, or have waited long enough.
    pub fn answer(&mut self, standing: impl Fn(&PodRef) -> Standing) {
        let now = Instant::now();
        let waiting = std::mem::take(&mut self.waiting);
        for waiting in waiting {
            let is_there = |netns: &str| {
                let sandbox = waiting.sandbox.as_ref();
                sandbox.is_none_or(|sandbox| sandbox.netns.name() == netns)
            };
            let reply = match standing(&waiting.pod) {
                Standing::InForce(netns) if is_there(&netns) => Reply::InForce,
                Standing::Left(why) => Reply::Left(why),
                Standing::InForce(_) if now >= waiting.until => {
                    Reply::NotYet("what was captured is its sandbox before".to_owned())
                }
                Standing::NotYet(why) if now >= waiting.until => Reply::NotYet(why),
                _ if waiting.reply.is_closed() => continue,
                _ => {
                    self.waiting.push(waiting);
                    continue;
                }
            };
            let _ = waiting.reply.send(reply);
        }
    }
}
