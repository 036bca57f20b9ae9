//! What the agent is for, case by case: the resources of the Sidecar reference as written there,
//! applied to a [`Lab`], with real connections. Run by the demo, which prints the rows, and by the
//! end-to-end tests, which want every row to be as expected.

mod default;
mod mixed;
mod no_ip_tables;
mod partial_ip_tables;
mod proxied;
mod unix_egress;
mod unix_ingress;
mod unix_ingress_bind;

use std::{net::SocketAddr, path::Path};

use crate::{
    Client, Place,
    apps::{Outcome, wire::canonical},
    lab::Lab,
};

/// A scenario: its name, what it shows, and how it is run.
pub struct Scenario {
    /// For tests and for `demo NAME`.
    pub name: &'static str,
    /// The headline.
    pub about: &'static str,
    /// Runs it in a lab of its own.
    pub run: fn() -> anyhow::Result<Vec<Row>>,
}

/// Every scenario.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "default",
        about: "Sidecar `default`: hosts of three namespaces, the rest by outboundTrafficPolicy",
        run: default::run,
    },
    Scenario {
        name: "unix-ingress",
        about: "Sidecar `default` with ingress 9080 to a unix socket, egress by port",
        run: unix_ingress::run,
    },
    Scenario {
        name: "no-ip-tables",
        about: "Sidecar `no-ip-tables`: nothing captured, two real listeners",
        run: no_ip_tables::run,
    },
    Scenario {
        name: "partial-ip-tables",
        about: "Sidecar `partial-ip-tables`: a VM with two interfaces",
        run: partial_ip_tables::run,
    },
    Scenario {
        name: "mixed",
        about: "modes mixed in one workload, and a mode changed live",
        run: mixed::run,
    },
    Scenario {
        name: "unix-egress",
        about: "egress listeners bound to unix sockets",
        run: unix_egress::run,
    },
    Scenario {
        name: "unix-ingress-bind",
        about: "an ingress listener bound to a unix socket, as Istio 1.0 had them (`--compat`)",
        run: unix_ingress_bind::run,
    },
    Scenario {
        name: "proxied",
        about: "a workload with an external proxy: captured both ways, original destination kept",
        run: proxied::run,
    },
];

/// One line of the demo's table.
#[derive(Debug)]
pub struct Row {
    /// What was asked for.
    pub asked: String,
    /// What the kernel did: who answered, or the error.
    pub did: String,
    /// How the connection went.
    pub path: String,
    /// Why, as the kernel counted it.
    pub reason: String,
    /// What should have happened, in the words of `did`, `path` and `reason`.
    pub expected: String,
    /// Whether it did.
    pub ok: bool,
}

/// A connection and what is expected of it.
#[derive(Clone, Copy, Debug)]
pub struct Check<'a> {
    /// What was asked for, for the table.
    pub asked: &'a str,
    /// `ip:port`, or `inbound:ip:port`, as `explain` takes it.
    pub destination: &'a str,
    /// Who answers; `None`: the connection is refused.
    pub reaches: Option<&'a str>,
    /// The path, by `explain`.
    pub path: &'a str,
    /// The reason, by the kernel's counters and by `explain`.
    pub reason: &'a str,
}

impl Check<'_> {
    /// Makes the connection: from inside the workload, or from outside for `inbound:`.
    ///
    /// # Errors
    /// When something around it fails. A connection that goes wrong is a row that is not ok.
    pub fn run(&self, lab: &Lab) -> anyhow::Result<Row> {
        let (direction, place, address) = match self.destination.strip_prefix("inbound:") {
            Some(address) => ("inbound", lab.outside(), address),
            None => ("outbound", lab.inside(), self.destination),
        };
        self.run_with(lab, direction, Client::tcp(address.parse()?).place(place))
    }

    /// As [`run`](Self::run), with a client of the caller's.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_with(&self, lab: &Lab, direction: &str, client: Client<'_>) -> anyhow::Result<Row> {
        let before = lab.decisions(direction)?;
        let outcome = client.banner()?;
        let counted = increased(&before, &lab.decisions(direction)?);
        let explained = lab.explain(self.destination)?;
        let text = |field: &str| explained[field].as_str().unwrap_or("?").to_owned();
        let reason = if counted == text("reason") {
            counted
        } else {
            format!("{counted} (explain says {})", text("reason"))
        };
        let address: SocketAddr = self.destination.trim_start_matches("inbound:").parse()?;
        let did = describe(&outcome, address);
        let expected_did = match self.reaches {
            Some(name) => format!("reached {name}"),
            None => REFUSED.to_owned(),
        };
        Ok(row(
            self.asked,
            (did, text("path"), reason),
            (&expected_did, self.path, self.reason),
        ))
    }
}

const REFUSED: &str = "refused";

/// A row from what was seen and what was expected, each (did, path, reason).
#[must_use]
pub fn row(
    asked: &str,
    (did, path, reason): (String, String, String),
    expected: (&str, &str, &str),
) -> Row {
    let ok = (did.as_str(), path.as_str(), reason.as_str()) == expected;
    Row {
        asked: asked.to_owned(),
        did,
        path,
        reason,
        expected: format!("{}, {}, {}", expected.0, expected.1, expected.2),
        ok,
    }
}

/// What became of a connection to `asked_for`: the application must also see the peer it asked
/// for, wherever the connection went.
fn describe(outcome: &Outcome, asked_for: SocketAddr) -> String {
    const ECONNREFUSED: i32 = 111;
    if !outcome.connected {
        return match outcome.errno {
            Some(ECONNREFUSED) => REFUSED.to_owned(),
            errno => format!("failed with errno {errno:?}"),
        };
    }
    match &outcome.banner {
        Some(banner) if outcome.peer.map(canonical) == Some(asked_for) => {
            format!("reached {}", banner.name)
        }
        Some(banner) => format!("reached {}, getpeername {:?}", banner.name, outcome.peer),
        None => format!("no answer: {:?}", outcome.error),
    }
}

/// The reason counted more often than before; all of them if there are several.
fn increased(before: &[(String, u64)], after: &[(String, u64)]) -> String {
    let count = |of: &[(String, u64)], reason: &str| {
        of.iter()
            .find(|(known, _)| known == reason)
            .map_or(0, |(_, count)| *count)
    };
    let more: Vec<&str> = after
        .iter()
        .filter(|(reason, now)| *now > count(before, reason))
        .map(|(reason, _)| reason.as_str())
        .collect();
    if more.is_empty() {
        "(nothing counted)".to_owned()
    } else {
        more.join("+")
    }
}

/// Runs checks one after the other.
///
/// # Errors
/// As [`Check::run`].
pub fn run_all(lab: &Lab, checks: &[Check<'_>]) -> anyhow::Result<Vec<Row>> {
    checks.iter().map(|check| check.run(lab)).collect()
}

/// An ordinary user at `place` calls a unix socket of the relay's; `expected` is who answers, and
/// the reason: the kernel, which decides nothing there, counts none.
///
/// # Errors
/// When something around it fails.
pub fn relayed_from_unix(
    lab: &Lab,
    place: Place<'_>,
    asked: &str,
    socket: &Path,
    expected: (&str, &str),
) -> anyhow::Result<Row> {
    const NOBODY: u32 = 65534;
    let (name, reason) = expected;
    let before = lab.relayed()?;
    let outcome = Client::unix(socket)
        .place(place.user(NOBODY, NOBODY))
        .banner()?;
    let did = match (&outcome.banner, outcome.errno) {
        (Some(banner), _) => format!("reached {}", banner.name),
        (None, errno) => format!("failed with errno {errno:?}, {:?}", outcome.error),
    };
    let path = if lab.relayed()? > before {
        "relay"
    } else {
        "not relayed"
    };
    Ok(row(
        asked,
        (did, path.into(), reason.into()),
        (&format!("reached {name}"), "relay", reason),
    ))
}
