//! Where the connections lead that arrive at a workload's relay.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, PoisonError, RwLock, RwLockWriteGuard,
        atomic::{AtomicUsize, Ordering},
    },
};

use sidecar_common::{
    decide::{self, InboundCall},
    keys::{PlanId, WorkloadId},
    values::PlanHeader,
};

use crate::{
    compile::{Listener, MemTables, Plan, Target},
    dataplane::Originals,
    relay::{Accepted, Route, Routes, SocketName, Tally, Way},
    runtime::tallies::OfPlan,
};

/// Plans that a connection on its way may still have been decided by.
const REMEMBERED_PLANS: usize = 4;

/// Routes of the loopback listeners: everything the kernel sends to the relay arrives there.
pub struct TcpRoutes {
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
pub struct Led {
    /// Its id in the kernel.
    pub id: PlanId,
    /// The plan.
    pub plan: Arc<Plan>,
    /// Where what is relayed is counted, by listener.
    pub tallies: OfPlan,
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
    /// Routes of the listeners with these addresses, for no plan yet.
    pub fn new(workload: WorkloadId, own: Vec<SocketAddr>, originals: Arc<Originals>) -> Self {
        Self {
            workload,
            own,
            plans: RwLock::default(),
            originals,
            turn: AtomicUsize::new(0),
        }
    }

    /// The kernel is about to follow this plan.
    pub fn announce(&self, led: Led) {
        self.plans_mut().announced = Some(led);
    }

    /// The plan that was announced is in force.
    pub fn settle(&self) {
        self.plans_mut().settle();
    }

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
pub struct UnixRoutes {
    targets: RwLock<Arc<[Target]>>,
    tally: Option<Arc<Tally>>,
    turn: AtomicUsize,
}

impl UnixRoutes {
    /// Routes to these targets, which are counted there.
    pub fn new(targets: Arc<[Target]>, tally: Option<Arc<Tally>>) -> Self {
        Self {
            targets: RwLock::new(targets),
            tally,
            turn: AtomicUsize::new(0),
        }
    }

    /// Leads to other targets from now on.
    pub fn lead_to(&self, targets: Arc<[Target]>) {
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
