//! Applications that listen where a real ingress listener is. Pure: what a workload listens on
//! and its plan in, findings out.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use sidecar_common::{Addr, Endpoint, Path, Reason, values::Rule};

use crate::resolve::{Finding, FindingKind};

use super::plan::Plan;

/// Ports of the plan's real ingress listeners.
#[must_use]
pub fn ports(plan: &Plan) -> BTreeSet<u16> {
    real(plan).map(|(at, _)| at.port).collect()
}

/// One finding for each real ingress listener at whose address and port one of `listening` is.
/// Where connections are handed to that very socket, nothing is wrong.
#[must_use]
pub fn collisions(plan: &Plan, workload: &str, listening: &BTreeSet<Endpoint>) -> Vec<Finding> {
    let mut found: BTreeMap<u32, Finding> = BTreeMap::new();
    for (at, rule) in real(plan) {
        let Some(listener) = plan.listener(rule.listener) else {
            continue;
        };
        let in_the_way = |socket: &&Endpoint| {
            covers(socket, at) && !(rule.backends == 1 && covers(socket, &rule.target))
        };
        let Some(socket) = listening.iter().find(in_the_way) else {
            continue;
        };
        let (at, socket) = (SocketAddr::from(*at), SocketAddr::from(*socket));
        let consequence = if rule.reason == Reason::NoneListener as u8 {
            "the proxy cannot bind the listener".to_owned()
        } else {
            format!(
                "sk_lookup comes before that socket, so connections to {at} go where the listener \
                 leads and never reach it"
            )
        };
        found.entry(rule.listener).or_insert_with(|| Finding {
            resource: plan.resource(listener).cloned(),
            kind: FindingKind::PortInUse,
            field: listener.field(),
            message: format!(
                "{listener}: a process of {workload} already listens on {socket}; {consequence}"
            ),
            remedy: "let the application listen on 127.0.0.1 or another port, or give the \
                     listener another port"
                .into(),
            related: Vec::new(),
        });
    }
    found.into_values().collect()
}

/// The rules of real ingress listeners that do not simply let connections pass.
fn real(plan: &Plan) -> impl Iterator<Item = (&Endpoint, &Rule)> {
    plan.inbound.iter().filter(|(_, rule)| {
        let kept_open_by_proxy = rule.reason == Reason::NoneListener as u8;
        let leads_elsewhere = rule.reason == Reason::IngressListener as u8
            && rule.path != Path::Pass as u8
            && rule.flags & Rule::FIRST != 0;
        kept_open_by_proxy || leads_elsewhere
    })
}

/// Whether a listening socket gets connections to `at`, or some of them where that is a wildcard.
fn covers(socket: &Endpoint, at: &Endpoint) -> bool {
    let family = |addr: &Addr| addr.wildcard();
    socket.port == at.port
        && (socket.addr == at.addr
            // `::` takes IPv4 as well, unless it is told not to.
            || socket.addr == Addr::ANY
            || socket.addr == at.addr.wildcard()
            || at.addr == at.addr.wildcard() && family(&socket.addr) == at.addr)
}
