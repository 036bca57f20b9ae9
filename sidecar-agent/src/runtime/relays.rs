//! The relay's listeners of one workload, and where their connections lead.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, PoisonError, RwLock, RwLockWriteGuard,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context, Result};
use sidecar_common::{
    decide::{self, InboundCall},
    keys::{PlanId, WorkloadId},
    values::PlanHeader,
};

use super::tallies::{OfPlan, Tallies};
use crate::{
    compile::{Listener, MemTables, Plan, Target, UnixAddr},
    dataplane::{Dataplane, Originals, RelaySockets, netns::Netns},
    observe::listeners::Listeners,
    relay::{
        Accepted, Engine, ListenerId, ListenerSpec, Namespaces, Role, Route, Routes, SocketName,
        Tally, Way,
        listen::{self, Listening},
    },
};

/// Plans that a connection on its way may still have been decided by.
const REMEMBERED_PLANS: usize = 4;

/// Listening sockets of one workload that no relay serves: on their way from one agent to the next.
/// Who connects waits until they are served again.
pub type Sockets = BTreeMap<Role, OwnedFd>;

/// One workload's relay, whose listeners are not served.
pub struct Paused {
    /// Its listening sockets.
    pub sockets: Sockets,
    routes: Arc<TcpRoutes>,
    namespaces: Namespaces,
}

impl Paused {
    /// Serves the TCP listeners again, and leaves the others alone.
    pub fn serve_tcp(self, engine: &Engine) {
        for (role, socket) in self.sockets {
            if matches!(role, Role::Unix(_)) {
                continue;
            }
            let added = engine.add(ListenerSpec {
                socket: Listening::adopt(socket),
                namespaces: self.namespaces.clone(),
                routes: self.routes.clone(),
            });
            if let Err(error) = added {
                tracing::warn!("serving the relay's listener: {error}");
            }
        }
    }
}

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
        let routes = Arc::new(TcpRoutes {
            workload,
            own: [Some(v4_name), v6_name].into_iter().flatten().collect(),
            plans: RwLock::default(),
            originals: originals.clone(),
            turn: AtomicUsize::new(0),
        });
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
        self.routes.plans_mut().announced = Some(Led {
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
        self.routes.plans_mut().settle();
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
        let routes = Arc::new(UnixRoutes {
            targets: RwLock::new(targets),
            tally,
            turn: AtomicUsize::new(0),
        });
        let id = engine.add(ListenerSpec {
            socket,
            namespaces: self.namespaces.clone(),
            routes: routes.clone(),
        })?;
        Ok(UnixListener { id, routes })
    }
}

/// Takes over listening sockets. One whose file is gone is closed: nobody could reach it.
fn adopt(inherited: Sockets, root: Option<&OwnedFd>) -> BTreeMap<Role, Listening> {
    let mut adopted = BTreeMap::new();
    for (role, socket) in inherited {
        let listening = match &role {
            Role::V4 | Role::V6 => Ok(Listening::adopt(socket)),
            Role::Unix(bind) => Listening::adopt_unix(root.map(AsFd::as_fd), bind, socket),
        };
        match listening {
            Ok(listening) => {
                adopted.insert(role, listening);
            }
            Err(error) => tracing::warn!("{error}"),
        }
    }
    adopted
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

/// Routes of the loopback listeners: everything the kernel sends to the relay arrives there.
struct TcpRoutes {
    workload: WorkloadId,
    /// The listeners' own addresses: a connection to one of them is outbound, one that kept its
    /// destination is inbound.
    own: Vec<SocketAddr>,
    plans: RwLock<Plans>,
    originals: Arc<Originals>,
    turn: AtomicUsize,
}

/// The plans that connections on their way may have been decided by.
#[derive(Default)]
struct Plans {
    /// Oldest first; the last is the one in force.
    in_force: Vec<Led>,
    /// The kernel is about to follow it.
    announced: Option<Led>,
}

/// A plan by which connections are led.
struct Led {
    id: PlanId,
    plan: Arc<Plan>,
    tallies: OfPlan,
}

impl Plans {
    fn settle(&mut self) {
        if let Some(led) = self.announced.take() {
            self.in_force.retain(|known| known.id != led.id);
            self.in_force.push(led);
            if self.in_force.len() > REMEMBERED_PLANS {
                self.in_force.remove(0);
            }
        }
    }
}

impl Led {
    /// A route by one of its listeners.
    fn way(&self, route: Route, listener: u32) -> Way {
        let tally = self.tallies.get(&listener).cloned();
        Way { route, tally }
    }
}

impl TcpRoutes {
    fn plans_mut(&self) -> RwLockWriteGuard<'_, Plans> {
        self.plans.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first answer of the plans that may have decided: the one in force, the one announced,
    /// those before.
    fn ask_plans<T>(&self, ask: impl Fn(&Led) -> Option<T>) -> Option<T> {
        let plans = self.plans.read().unwrap_or_else(PoisonError::into_inner);
        let (current, before) = match plans.in_force.split_last() {
            Some((current, before)) => (Some(current), before),
            None => (None, [].as_slice()),
        };
        let all = current
            .into_iter()
            .chain(&plans.announced)
            .chain(before.iter().rev());
        all.into_iter().find_map(ask)
    }

    /// The kernel published where this connection was going and which listener decided. Somebody
    /// who calls the relay's port directly has no such entry, and is refused.
    fn outbound(&self, peer: SocketAddr, local: SocketAddr) -> Option<Way> {
        let original = self
            .originals
            .take(self.workload, peer.into(), local.into())?;
        self.ask_plans(|led| {
            let listener = led.plan.listener(original.listener)?;
            (led.id == original.plan).then(|| {
                let asked_for = original.dst.into();
                let targets = self.targets(listener, asked_for);
                let route = if led.plan.header.flags & PlanHeader::OPEN_RELAY == 0 {
                    dial(targets)
                } else {
                    let last = [Target::Tcp(asked_for)];
                    Route::DialElse(targets.iter().cloned().chain(last).collect())
                };
                led.way(route, original.listener)
            })
        })
    }

    /// The accepted socket's local address is the original destination: decided again by the same
    /// function. The kernel has chosen the relay, so of the plans around a switch it was the one
    /// that says so.
    fn inbound(&self, peer: SocketAddr, local: SocketAddr) -> Option<Way> {
        self.ask_plans(|led| {
            let plan = &*led.plan;
            let decision = decide::inbound(
                &MemTables::new(plan, &[]),
                led.id,
                &plan.header,
                &InboundCall {
                    src: peer.into(),
                    dst: local.into(),
                    // What arrives by an interface that is unlike others is not relayed.
                    interface: 0,
                },
            );
            let listener = plan.listener(decision.listener)?;
            // It has come to where it was going: there is no other place for it.
            (decision.path == sidecar_common::Path::Relay)
                .then(|| led.way(dial(self.targets(listener, local)), decision.listener))
        })
    }

    fn targets(&self, listener: &Listener, original: SocketAddr) -> Arc<[Target]> {
        let targets = listener.targets.iter().map(|target| match target {
            Target::Original => Target::Tcp(original),
            other => other.clone(),
        });
        in_turn(targets.collect(), &self.turn)
    }
}

impl Routes for TcpRoutes {
    fn route(&self, accepted: &Accepted<'_>) -> Way {
        let (Ok(SocketName::Tcp(local)), Ok(SocketName::Tcp(peer))) =
            (accepted.local(), accepted.peer())
        else {
            return Route::Refuse.into();
        };
        let (local, peer) = (canonical(local), canonical(peer));
        let way = if self.own.contains(&local) {
            self.outbound(peer, local)
        } else {
            self.inbound(peer, local)
        };
        way.unwrap_or(Route::Refuse.into())
    }
}

/// Routes of a unix listener.
struct UnixRoutes {
    targets: RwLock<Arc<[Target]>>,
    tally: Option<Arc<Tally>>,
    turn: AtomicUsize,
}

impl UnixRoutes {
    fn lead_to(&self, targets: Arc<[Target]>) {
        *self.targets.write().unwrap_or_else(PoisonError::into_inner) = targets;
    }
}

impl Routes for UnixRoutes {
    fn route(&self, _accepted: &Accepted<'_>) -> Way {
        let targets = self
            .targets
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        Way {
            route: dial(in_turn(targets.to_vec(), &self.turn)),
            tally: self.tally.clone(),
        }
    }
}

fn dial(targets: Arc<[Target]>) -> Route {
    if targets.is_empty() {
        Route::Refuse
    } else {
        Route::Dial(targets)
    }
}

/// Begins with another target each time: the first is preferred, the rest are for its failure.
fn in_turn(mut targets: Vec<Target>, turn: &AtomicUsize) -> Arc<[Target]> {
    if targets.len() > 1 {
        let first = turn.fetch_add(1, Ordering::Relaxed) % targets.len();
        targets.rotate_left(first);
    }
    targets.into()
}

fn canonical(address: SocketAddr) -> SocketAddr {
    let ip: IpAddr = address.ip().to_canonical();
    SocketAddr::new(ip, address.port())
}
