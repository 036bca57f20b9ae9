//! The reference's second Sidecar: ingress to a unix socket, egress by port.

use super::{Check, Row, row, run_all};
use crate::{
    Client, Mode, Server,
    lab::{Lab, service},
};

const SIDECAR: &str = include_str!("../../resources/unix-ingress.yaml");

/// Sent and received again through the unix socket, at the same time.
const BYTES: u64 = 1 << 30;

pub fn run() -> anyhow::Result<Vec<Row>> {
    let mut lab = Lab::new()?;
    lab.announce("10.96.0.0/16")?;
    lab.serve("10.96.0.1:9080", "details")?;
    lab.serve("10.96.0.1:8000", "details-admin")?;
    lab.serve("10.96.0.3:15012", "istiod")?;
    let socket = lab.in_root("/var/run/someuds.sock");
    let application = Server::unix(&socket)
        .place(lab.inside())
        .name("unix application")
        .start()?;
    let mut services = service("prod-us1", "details", "10.96.0.1".parse()?, 9080);
    services += &service("prod-us1", "details-admin", "10.96.0.1".parse()?, 8000);
    services += &service("istio-system", "istiod", "10.96.0.3".parse()?, 15012);
    lab.write("services.yaml", &services)?;
    lab.write("sidecar.yaml", SIDECAR)?;
    lab.write_workload(&[])?;
    lab.write_mesh("outboundTrafficPolicy:\n  mode: REGISTRY_ONLY\n")?;
    lab.start_agent()?;

    let inbound = format!("inbound:{}:9080", lab.workload().v4);
    let inbound_v6 = format!("inbound:[{}]:9080", lab.workload().v6);
    let ingress = |asked, destination| Check {
        asked,
        destination,
        reaches: Some("unix application"),
        path: "relay",
        reason: "ingress-listener",
    };
    let mut rows = run_all(
        &lab,
        &[
            ingress(
                "ingress 9080 to unix:///var/run/someuds.sock",
                inbound.as_str(),
            ),
            ingress("the same by IPv6", inbound_v6.as_str()),
            Check {
                asked: "egress port 9080: prod-us1",
                destination: "10.96.0.1:9080",
                reaches: Some("details"),
                path: "direct",
                reason: "egress-service",
            },
            Check {
                asked: "egress istio-system/*",
                destination: "10.96.0.3:15012",
                reaches: Some("istiod"),
                path: "direct",
                reason: "egress-service",
            },
            Check {
                asked: "prod-us1 on another port",
                destination: "10.96.0.1:8000",
                reaches: None,
                path: "deny",
                reason: "registry-only",
            },
        ],
    )?;

    drop(application);
    rows.push(
        Check {
            asked: "the unix application is gone",
            destination: &inbound,
            reaches: None,
            path: "relay",
            reason: "ingress-listener",
        }
        .run(&lab)
        .map(reset_counts_as_refused)?,
    );
    let echo = Server::unix(&socket)
        .place(lab.inside())
        .mode(Mode::Echo)
        .start()?;
    lab.keep(echo);
    rows.push(transfer(&lab)?);
    Ok(rows)
}

/// The relay accepts before it dials: the client sees a connection that is reset at once.
fn reset_counts_as_refused(row: Row) -> Row {
    let ok = row.did.starts_with("no answer") && row.path == "relay";
    Row {
        ok,
        expected: "no answer (reset), relay, ingress-listener".into(),
        ..row
    }
}

fn transfer(lab: &Lab) -> anyhow::Result<Row> {
    let address = (lab.workload().v4, 9080).into();
    let outcome = Client::tcp(address).place(lab.outside()).echo(BYTES)?;
    let did = match outcome.transfer {
        Some(transfer) if transfer.intact && transfer.received == BYTES => {
            "1 GiB each way, intact".to_owned()
        }
        other => format!("{other:?}, {:?}", outcome.error),
    };
    let expected = ("1 GiB each way, intact", "relay", "ingress-listener");
    Ok(row(
        "half-close, 1 GiB checksummed both ways",
        (did, "relay".into(), "ingress-listener".into()),
        expected,
    ))
}
