//! What a workload's listeners are, and what the relay does for them.

use serde::{Deserialize, Serialize};
use sidecar_common::Path;

use crate::{
    compile::{Listener, Plan, plan::Place},
    relay::Tallied,
};

/// Most listeners of one workload that are listed: a plan without a Sidecar has one for each service
/// of the mesh.
pub const MOST: usize = 32;

/// Most targets of one listener that are listed.
const MOST_TARGETS: usize = 4;

/// The listeners of the plan in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listeners {
    /// Relayed ones first, then ingress, then those with an address of their own.
    pub listed: Vec<ListenerStatus>,
    /// How many more there are.
    pub unlisted: usize,
}

/// One listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// Its name, with address and port: `ingress *:9080`.
    pub listener: String,
    /// How connections travel that it takes; IPv4 and IPv6 may differ.
    pub paths: Vec<String>,
    /// Where they lead; the first few, if to many.
    pub targets: Vec<String>,
    /// How many more targets there are.
    pub unlisted_targets: usize,
    /// The service that is reached through it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub service: Option<String>,
    /// What the relay has done for it; absent: it is not relayed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub relayed: Option<Relayed>,
}

/// What the relay has done for one listener since it was declared, or the agent started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relayed {
    /// Connections open now.
    pub active: u64,
    /// Connections so far.
    pub accepted: u64,
    /// Bytes delivered to targets.
    pub bytes_to_target: u64,
    /// Bytes delivered to clients.
    pub bytes_to_client: u64,
}

impl From<Tallied> for Relayed {
    fn from(tallied: Tallied) -> Self {
        let Tallied {
            active,
            accepted,
            bytes_to_target,
            bytes_to_client,
        } = tallied;
        Self {
            active,
            accepted,
            bytes_to_target,
            bytes_to_client,
        }
    }
}

/// How connections travel that the listeners of a plan take.
#[derive(Debug)]
pub struct Paths(Vec<u8>);

impl Paths {
    /// Of every listener of a plan.
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        let of_unix = |listener: &Listener| match listener.unix_bind() {
            Some(_) => bit(Path::Relay),
            None => 0,
        };
        let mut paths: Vec<u8> = plan.listeners().map(of_unix).collect();
        for rule in plan.rules() {
            let index = usize::try_from(rule.listener).ok();
            if let (Some(path), Some(paths)) = (
                Path::from_number(rule.path),
                index.and_then(|index| paths.get_mut(index)),
            ) {
                *paths |= bit(path);
            }
        }
        Self(paths)
    }

    /// The listeners that the relay serves, by `Rule::listener`.
    pub fn relayed(&self) -> impl Iterator<Item = u32> {
        let relayed = self.0.iter().enumerate();
        let relayed = relayed.filter(|(_, paths)| **paths & bit(Path::Relay) != 0);
        relayed.filter_map(|(index, _)| u32::try_from(index).ok())
    }
}

fn bit(path: Path) -> u8 {
    1 << path as u8
}

/// The listeners of a plan, of which nothing was relayed yet.
#[must_use]
pub fn of_plan(plan: &Plan, paths: &Paths) -> Listeners {
    let mut all: Vec<(&Listener, u8)> = plan.listeners().zip(paths.0.iter().copied()).collect();
    let unlisted = all.len().saturating_sub(MOST);
    // A stable sort: else in the order of the plan.
    all.sort_by_key(|(listener, paths)| rank(listener, *paths));
    let listed = all.into_iter().take(MOST);
    Listeners {
        listed: listed
            .map(|(listener, paths)| describe(listener, paths))
            .collect(),
        unlisted,
    }
}

fn rank(listener: &Listener, paths: u8) -> u8 {
    use sidecar_common::decide::Direction;
    match (&listener.place, listener.direction) {
        _ if paths & bit(Path::Relay) != 0 => 0,
        (_, Direction::Inbound) => 1,
        (Place::Ip(_) | Place::Unix(_), _) if listener.service.is_none() => 2,
        (Place::Unknown, _) => 3,
        _ => 4,
    }
}

fn describe(listener: &Listener, paths: u8) -> ListenerStatus {
    let targets = listener.targets.iter().take(MOST_TARGETS);
    let paths: Vec<Path> = Path::ALL
        .iter()
        .copied()
        .filter(|path| paths & bit(*path) != 0)
        .collect();
    ListenerStatus {
        listener: listener.to_string(),
        relayed: paths.contains(&Path::Relay).then(Relayed::default),
        paths: paths.iter().map(|path| path.name().to_owned()).collect(),
        targets: targets.map(ToString::to_string).collect(),
        unlisted_targets: listener.targets.len().saturating_sub(MOST_TARGETS),
        service: listener.service.as_deref().map(str::to_owned),
    }
}
