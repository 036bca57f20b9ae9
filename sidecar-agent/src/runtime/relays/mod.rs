//! The relay's listeners of one workload, and where their connections lead.

mod routes;
mod sockets;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use anyhow::{Context, Result};
use sidecar_common::keys::{PlanId, WorkloadId};

pub use self::sockets::{Paused, Sockets};
use self::{
    routes::{Led, TcpRoutes, UnixRoutes},
    sockets::adopt,
};
use super::tallies::Tallies;
use crate::{
    compile::{Listener, Plan, Target, UnixAddr},
    dataplane::{Dataplane, Originals, RelaySockets, netns::Netns},
    observe::listeners::Listeners,
    relay::{
        Engine, ListenerId, ListenerSpec, Namespaces, Role, SocketName, Tally,
        listen::{self, Listening},
    },
};

/// One workload's use of the relay. Dropping it without [`WorkloadRelay::stop`] leaves its
/// listeners open until the engine ends.
pub struct WorkloadRelay {
    routes: Arc<TcpRoutes>,
    tcp: Vec<(Role, ListenerId)>,
    /// Open, and served once it is known where their connections lead.
    waiting: BTreeMap<Role, Listening>,
    unix: BTreeMap<UnixAddr, UnixListener>,
    namespaces: Namespaces,
    netns: Netns,
    tallies: Tallies,
}

struct UnixListener {
    id: ListenerId,
    routes: Arc<UnixRoutes>,
}

impl WorkloadRelay {
    /// Opens the workload's loopback listeners, unless they are among `inherited`, and tells the
    /// kernel. They are served from [`prepare`](Self::prepare) on.
    pub fn start(
        dataplane: &mut Dataplane,
        originals: &Arc<Originals>,
        workload: WorkloadId,
        netns: &Netns,
        root: Option<Arc<OwnedFd>>,
        inherited: Sockets,
    ) -> Result<Self> {
        let mut waiting = adopt(inherited, root.as_deref());
        let mut open = |role, ip: IpAddr| match waiting.remove(&role) {
            Some(socket) => Ok(socket),
            None => netns
                .run(|| listen::tcp(SocketAddr::from((ip, 0))))?
                .context("opening the relay's listener"),
        };
        let v4 = open(Role::V4, Ipv4Addr::LOCALHOST.into())?;
        // A namespace may have no IPv6; then nothing of it can arrive either.
        let v6 = open(Role::V6, Ipv6Addr::LOCALHOST.into()).ok();
        let v4_name = tcp_name(&v4)?;
        let v6_name = v6.as_ref().map(tcp_name).transpose()?;
        let namespaces = Namespaces {
            net: Some(Arc::new(netns.as_fd().try_clone_to_owned()?)),
            root,
        };
        let own = [Some(v4_name), v6_name].into_iter().flatten().collect();
        let routes = Arc::new(TcpRoutes::new(workload, own, originals.clone()));
        dataplane.set_relay(
            workload,
            &RelaySockets {
                v4: Some((v4.as_fd(), v4_name.port())),
                v6: v6
                    .as_ref()
                    .zip(v6_name)
                    .map(|(socket, name)| (socket.as_fd(), name.port())),
            },
        )?;
        waiting.insert(Role::V4, v4);
        waiting.extend(v6.map(|socket| (Role::V6, socket)));
        Ok(Self {
            routes,
            tcp: Vec::new(),
            waiting,
            unix: BTreeMap::new(),
            namespaces,
            netns: netns.clone(),
            tallies: Tallies::default(),
        })
    }

    /// Gets ready for a plan, before the kernel follows it: opens the unix listeners it declares.
    ///
    /// What cannot be opened is returned as text; the rest of the plan is served.
    pub fn prepare(&mut self, engine: &Engine, id: PlanId, plan: &Arc<Plan>) -> Vec<String> {
        let tallies = self.tallies.of_plan(plan);
        self.routes.announce(Led {
            id,
            plan: plan.clone(),
            tallies: tallies.clone(),
        });
        let mut problems = self.serve_tcp(engine);
        for (index, listener) in (0..).zip(plan.listeners()) {
            let Some(bind) = listener.unix_bind() else {
                continue;
            };
            if self.unix.contains_key(bind) {
                continue;
            }
            let tally = tallies.get(&index).cloned();
            match self.open_unix(engine, bind, Arc::clone(&listener.targets), tally) {
                Ok(open) => {
                    self.unix.insert(bind.clone(), open);
                }
                Err(error) => problems.push(describe(plan, listener, &error)),
            }
        }
        problems
    }

    /// Serves the loopback listeners.
    fn serve_tcp(&mut self, engine: &Engine) -> Vec<String> {
        let mut problems = Vec::new();
        for role in [Role::V4, Role::V6] {
            let Some(socket) = self.waiting.remove(&role) else {
                continue;
            };
            let added = engine.add(ListenerSpec {
                socket,
                namespaces: self.namespaces.clone(),
                routes: self.routes.clone(),
            });
            match added {
                Ok(id) => self.tcp.push((role, id)),
                Err(error) => problems.push(format!("serving the relay's listener: {error}")),
            }
        }
        problems
    }

    /// The plan prepared for is in force: leads the unix listeners where it says, and closes those
    /// it does not declare. Live connections go on.
    pub fn settle(&mut self, engine: &Engine, plan: &Plan) {
        self.routes.settle();
        self.tallies.keep(plan);
        // Inherited, and not declared any more.
        self.waiting.clear();
        for listener in plan.listeners() {
            let open = listener.unix_bind().and_then(|bind| self.unix.get(bind));
            if let Some(open) = open {
                open.routes.lead_to(Arc::clone(&listener.targets));
            }
        }
        let gone = |bind: &UnixAddr| {
            !plan
                .listeners()
                .any(|listener| listener.unix_bind() == Some(bind))
        };
        for (_, open) in self.unix.extract_if(.., |bind, _| gone(bind)) {
            drop(engine.remove(open.id));
        }
    }

    /// Writes what was relayed for each listener into those that are told.
    pub fn tell(&self, listeners: &mut Listeners) {
        self.tallies.tell(listeners);
    }

    /// Closes every listener. Live connections go on.
    pub fn stop(self, engine: &Engine) {
        drop(self.take_back(engine));
    }

    /// Serves no listener any more, and leaves them open, with their files. Live connections go on.
    pub fn pause(self, engine: &Engine) -> Paused {
        let (routes, namespaces) = (self.routes.clone(), self.namespaces.clone());
        let listening = self.take_back(engine).into_iter();
        Paused {
            sockets: listening
                .map(|(role, listening)| (role, listening.release()))
                .collect(),
            routes,
            namespaces,
        }
    }

    fn take_back(self, engine: &Engine) -> BTreeMap<Role, Listening> {
        let unix = self.unix.into_iter();
        let unix = unix.map(|(bind, open)| (Role::Unix(bind), open.id));
        let mut listening = self.waiting;
        for (role, id) in self.tcp.into_iter().chain(unix) {
            listening.extend(engine.remove(id).map(|socket| (role, socket)));
        }
        listening
    }

    fn open_unix(
        &mut self,
        engine: &Engine,
        bind: &UnixAddr,
        targets: Arc<[Target]>,
        tally: Option<Arc<Tally>>,
    ) -> Result<UnixListener> {
        let root = self.namespaces.root.as_deref().map(AsFd::as_fd);
        let socket = match self.waiting.remove(&Role::Unix(bind.clone())) {
            Some(socket) => socket,
            None => self
                .netns
                .run(|| listen::unix(root, bind, listen::ANYBODY))??,
        };
        let routes = Arc::new(UnixRoutes::new(targets, tally));
        let id = engine.add(ListenerSpec {
            socket,
            namespaces: self.namespaces.clone(),
            routes: routes.clone(),
        })?;
        Ok(UnixListener { id, routes })
    }
}

fn describe(plan: &Plan, listener: &Listener, error: &anyhow::Error) -> String {
    match plan.resource(listener) {
        Some(resource) => format!("{listener} of {resource}: {error:#}"),
        None => format!("{listener}: {error:#}"),
    }
}

fn tcp_name(socket: &Listening) -> Result<SocketAddr> {
    match socket
        .local()
        .context("reading the relay listener's address")?
    {
        SocketName::Tcp(name) => Ok(name),
        other => anyhow::bail!("the relay's listener has an unexpected name {other:?}"),
    }
}
