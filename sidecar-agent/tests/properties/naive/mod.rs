//! A second opinion: Istio's rules, written down as directly as they can be. Slow, without tables,
//! tries or indexes; every question walks all lists again.

mod inbound;
mod iptables;
mod listeners;
mod names;
mod outbound;
mod selection;
mod services;
mod traffic;
mod visibility;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use sidecar_agent::{
    compile::WorkloadPlan,
    model::{
        Object, Snapshot,
        mesh::InterceptionMode,
        sidecar::{OutboundTrafficPolicy, Sidecar},
        workload::{ADDRESSES_ANNOTATION, NETNS_ANNOTATION, PROXY_ANNOTATION, WorkloadEntry},
    },
};
use sidecar_common::{Path, Reason};

pub use inbound::inbound;
pub use outbound::outbound;
pub use selection::select;
pub use services::services;
pub use visibility::{Exposed, egress, exposed, scope};

use crate::subject::Outcome;

/// An outbound connection or datagram, and who makes it.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    pub dst: SocketAddr,
    /// What it is bound to.
    pub src: Option<IpAddr>,
    pub uid: u32,
    pub gid: u32,
    pub udp: bool,
    /// By which it leaves, unless it stays within the workload.
    pub interface: Option<&'a str>,
}

/// What is expected. Where several rules say that a connection passes, any of them may be given as
/// the reason.
#[derive(Clone, Debug)]
pub struct Expected {
    pub outcome: Outcome,
    pub also: Vec<Reason>,
}

impl Expected {
    pub fn is(&self, decided: &Outcome) -> bool {
        let Self { outcome, also } = self;
        if outcome.path != Path::Pass || !also.contains(&decided.reason) {
            return outcome == decided;
        }
        // What a listener that is not reached leads to is nobody's business.
        (outcome.path, &outcome.targets) == (decided.path, &decided.targets)
    }
}

impl From<Outcome> for Expected {
    fn from(outcome: Outcome) -> Self {
        Self {
            outcome,
            also: Vec::new(),
        }
    }
}

/// A workload as its entry describes it.
pub struct Workload<'a> {
    pub entry: &'a Object<WorkloadEntry>,
    pub labels: BTreeMap<String, String>,
    pub addresses: Vec<IpAddr>,
    pub external_proxy: bool,
    pub own_netns: bool,
    pub sidecar: Option<&'a Object<Sidecar>>,
    pub traffic: traffic::Traffic,
}

impl<'a> Workload<'a> {
    pub fn of(snapshot: &'a Snapshot, planned: &WorkloadPlan) -> Self {
        let planned = &planned.workload;
        let entry = snapshot
            .workloads
            .iter()
            .find(|w| w.meta.namespace == planned.namespace && w.meta.name == planned.name)
            .expect("a planned workload is in the snapshot");
        let labels = services::labels(entry);
        let annotations = &entry.meta.annotations;
        let mut addresses: Vec<IpAddr> = Vec::new();
        let further = annotations
            .get(ADDRESSES_ANNOTATION)
            .map_or("", String::as_str);
        for text in std::iter::once(entry.spec.address.as_str()).chain(further.split(',')) {
            if let Ok(ip) = text.trim().parse::<IpAddr>()
                && !addresses.contains(&ip.to_canonical())
            {
                addresses.push(ip.to_canonical());
            }
        }
        Self {
            addresses,
            external_proxy: annotations
                .get(PROXY_ANNOTATION)
                .is_some_and(|p| p == "external"),
            own_netns: annotations.contains_key(NETNS_ANNOTATION),
            sidecar: select(snapshot, &entry.meta.namespace, &labels),
            traffic: traffic::Traffic::of(annotations, &snapshot.mesh),
            labels,
            entry,
        }
    }

    fn namespace(&self) -> &str {
        &self.entry.meta.namespace
    }

    fn mode(&self) -> InterceptionMode {
        self.traffic.mode
    }

    fn policy(&self, snapshot: &Snapshot) -> OutboundTrafficPolicy {
        self.sidecar
            .and_then(|sidecar| sidecar.spec.outbound_traffic_policy)
            .unwrap_or(snapshot.mesh.outbound_traffic_policy)
    }

    fn is_v4(&self) -> bool {
        self.addresses.is_empty() || self.addresses.iter().any(IpAddr::is_ipv4)
    }

    fn is_v6(&self) -> bool {
        self.addresses.iter().any(IpAddr::is_ipv6)
    }
}

fn outcome(path: Path, reason: Reason) -> Outcome {
    let targets = match path {
        Path::Pass => [ORIGINAL.to_owned()].into(),
        _ => [].into(),
    };
    Outcome {
        path,
        reason,
        service: None,
        targets,
    }
}

/// How an outcome names a target that is where the connection was going anyway.
const ORIGINAL: &str = "original destination";
