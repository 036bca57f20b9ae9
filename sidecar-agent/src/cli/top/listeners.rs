//! The listeners, and what the relay does for each. Pure.

use std::{cmp::Reverse, collections::BTreeMap, time::Duration};

use super::figures::per_second;
use crate::{
    cli::render::printable,
    observe::{
        listeners::{ListenerStatus, Relayed},
        status::Status,
    },
};

/// One listener.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// `namespace/name`.
    pub workload: String,
    /// Its name, with address and port.
    pub listener: String,
    /// How the connections travel that it takes.
    pub paths: String,
    /// Where they lead.
    pub leads_to: String,
    /// What the relay does for it; `None`: it is not relayed.
    pub relayed: Option<Rates>,
}

/// What the relay does for a listener.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Connections open now.
    pub active: u64,
    /// New connections per second.
    pub accepted: f64,
    /// Bytes per second delivered to targets.
    pub to_target: f64,
    /// Bytes per second delivered to clients.
    pub to_client: f64,
}

/// The listeners of all workloads: those that relay most first, then as the workloads are ordered.
#[must_use]
pub fn rows(before: &Status, now: &Status, elapsed: Duration) -> Vec<Row> {
    let was: BTreeMap<_, Relayed> = all(before)
        .filter_map(|(workload, of)| Some(((workload, &*of.listener), of.relayed?)))
        .collect();
    let mut rows: Vec<Row> = all(now)
        .map(|(workload, of)| {
            let was = was.get(&(workload, &*of.listener)).copied();
            Row {
                workload: workload.to_owned(),
                listener: of.listener.clone(),
                paths: of.paths.join("+"),
                leads_to: leads_to(of),
                relayed: of
                    .relayed
                    .map(|now| rates(was.unwrap_or_default(), now, elapsed)),
            }
        })
        .collect();
    // Whole numbers are good keys.
    rows.sort_by_key(|row| Reverse(row.relayed.map(|of| (of.bytes(), of.active))));
    rows
}

fn all(status: &Status) -> impl Iterator<Item = (&str, &ListenerStatus)> {
    status.workloads.iter().flat_map(|workload| {
        let listed = workload.listeners.listed.iter();
        listed.map(|listener| (&*workload.workload, listener))
    })
}

fn rates(was: Relayed, now: Relayed, elapsed: Duration) -> Rates {
    let rate = |of: fn(&Relayed) -> u64| per_second(of(&was), of(&now), elapsed);
    Rates {
        active: now.active,
        accepted: rate(|of| of.accepted),
        to_target: rate(|of| of.bytes_to_target),
        to_client: rate(|of| of.bytes_to_client),
    }
}

impl Rates {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate is no negative number, and far below 2^64"
    )]
    fn bytes(&self) -> u64 {
        (self.to_target + self.to_client) as u64
    }
}

fn leads_to(of: &ListenerStatus) -> String {
    let more = (of.unlisted_targets > 0).then(|| format!("{} more", of.unlisted_targets));
    let targets = of.targets.iter().cloned().chain(more);
    let targets = targets.collect::<Vec<_>>().join(", ");
    match &of.service {
        Some(service) if targets.is_empty() => service.clone(),
        Some(service) => format!("{targets} ({service})"),
        None => targets,
    }
}

/// The columns' names.
pub const COLUMNS: [&str; 8] = [
    "LISTENER",
    "WORKLOAD",
    "PATH",
    "OPEN",
    "NEW/S",
    "TO TARGET/S",
    "TO CLIENT/S",
    "LEADS TO",
];

/// A row in these columns.
#[must_use]
pub fn cells(row: &Row) -> [String; 8] {
    let figure = |of: fn(&Rates) -> String| row.relayed.as_ref().map_or("-".to_owned(), of);
    [
        printable(&row.listener),
        printable(&row.workload),
        row.paths.clone(),
        figure(|of| of.active.to_string()),
        figure(|of| super::view::rate(of.accepted)),
        figure(|of| super::view::bytes(of.to_target)),
        figure(|of| super::view::bytes(of.to_client)),
        printable(&row.leads_to),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::top::figures::tests::status;

    #[test]
    fn the_busiest_is_first_and_what_is_not_relayed_has_no_rates() {
        let rows = rows(&status(0, 0), &status(0, 4096), Duration::from_secs(2));
        let names: Vec<_> = rows.iter().map(|row| &*row.listener).collect();
        assert_eq!(names, ["egress 127.0.0.1:3306", "ingress *:9080"]);
        let busy = rows[0].relayed.unwrap();
        assert_eq!(
            [busy.to_target, busy.to_client].map(f64::to_bits),
            [2048.0_f64, 4096.0].map(f64::to_bits)
        );
        assert_eq!(rows[0].leads_to, "unix:///db.sock (db.example.com)");
        assert_eq!(rows[1].relayed, None);
        assert_eq!(rows[1].leads_to, "127.0.0.1:8080, 2 more");
    }
}
