//! Capture modes mixed in one workload, and one of them changed while connections live.

use std::{
    fmt::Write as _,
    io::Read as _,
    net::{SocketAddr, TcpStream},
    time::Instant,
};

use anyhow::ensure;

use super::{Check, Row, row, run_all};
use crate::{
    Client, DEADLINE, Mode, Server,
    apps::Seen,
    lab::{Lab, service},
    poll::poll_result,
};

/// Ingress 9080 by `capture_mode`, with a bind that matters only where the listener is real.
fn sidecar(capture_mode: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\n\
         kind: Sidecar\n\
         metadata:\n  name: mixed\n  namespace: prod-us1\n\
         spec:\n  \
           ingress:\n  \
           - port: {{number: 9080, protocol: TCP, name: main}}\n    \
             bind: 127.0.0.1\n    \
             captureMode: {capture_mode}\n    \
             defaultEndpoint: 127.0.0.1:8080\n  \
           - port: {{number: 9443, protocol: TCP, name: real}}\n    \
             bind: 127.0.0.1\n    \
             captureMode: NONE\n    \
             defaultEndpoint: 127.0.0.1:8080\n  \
           egress:\n  \
           - port: {{number: 3306, protocol: TCP, name: db}}\n    \
             bind: 127.0.0.1\n    \
             captureMode: NONE\n    \
             hosts: ['prod-us1/db.prod-us1.svc.cluster.local']\n  \
           - hosts: ['prod-us1/*']\n"
    )
}

pub fn run() -> anyhow::Result<Vec<Row>> {
    let mut lab = Lab::new()?;
    lab.announce("10.96.0.0/16")?;
    lab.serve("10.96.0.1:9080", "details")?;
    lab.serve("10.96.0.7:3306", "db")?;
    lab.serve_inside("127.0.0.1:8080", "captured application")?;
    lab.serve_inside("0.0.0.0:9080", "application on 9080")?;
    lab.serve_inside("0.0.0.0:9443", "application on 9443")?;
    let mut services = service("prod-us1", "details", "10.96.0.1".parse()?, 9080);
    services += &service("prod-us1", "db", "10.96.0.7".parse()?, 3306);
    lab.write("services.yaml", &services)?;
    lab.write("sidecar.yaml", &sidecar("IPTABLES"))?;
    lab.write_workload(&[])?;
    lab.write_mesh("{}\n")?;
    lab.start_agent()?;

    let captured = format!("inbound:{}:9080", lab.workload().v4);
    let real = format!("inbound:{}:9443", lab.workload().v4);
    let by_iptables = Check {
        asked: "ingress 9080 IPTABLES: captured on any address",
        destination: &captured,
        reaches: Some("captured application"),
        path: "direct",
        reason: "ingress-listener",
    };
    let mut rows = run_all(
        &lab,
        &[
            by_iptables,
            Check {
                asked: "ingress 9443 NONE bound to 127.0.0.1: podIP untouched",
                destination: &real,
                reaches: Some("application on 9443"),
                path: "pass",
                reason: "undeclared-port",
            },
            Check {
                asked: "egress 3306 NONE bound to 127.0.0.1",
                destination: "127.0.0.1:3306",
                reaches: Some("db"),
                path: "direct",
                reason: "egress-listener",
            },
            Check {
                asked: "egress catch-all DEFAULT: captured",
                destination: "10.96.0.1:9080",
                reaches: Some("details"),
                path: "direct",
                reason: "egress-service",
            },
        ],
    )?;
    rows.extend(flip(&mut lab, &captured)?);
    Ok(rows)
}

/// Changes 9080 from IPTABLES to NONE in the file, with a connection open.
fn flip(lab: &mut Lab, destination: &str) -> anyhow::Result<Vec<Row>> {
    let echo = Server::tcp("127.0.0.1:8090".parse()?)
        .place(lab.inside())
        .mode(Mode::Echo)
        .start()?;
    lab.keep(echo);
    let to_echo = sidecar("IPTABLES").replace("127.0.0.1:8080", "127.0.0.1:8090");
    lab.write("sidecar.yaml", &to_echo)?;
    lab.wait_captured()?;
    let address = (lab.workload().v4, 9080).into();
    let mut held = Client::tcp(address).place(lab.outside()).hold()?;
    ensure!(
        held.exchange("before")? == "before",
        "the held connection does not echo"
    );
    lab.write("sidecar.yaml", &sidecar("IPTABLES"))?;
    lab.wait_captured()?;

    let written = Instant::now();
    lab.write_only("sidecar.yaml", &sidecar("NONE"))?;
    poll_result(DEADLINE, &format!("{destination} to change"), || {
        let seen = banner_name(lab, address)?;
        ensure!(seen == "application on 9080", "it reaches {seen:?}");
        Ok(())
    })?;
    let elapsed = written.elapsed();
    let established = held
        .exchange("after")
        .unwrap_or_else(|error| format!("{error:#}"));

    let mut flipped = Check {
        asked: "9080 changed to NONE bound to 127.0.0.1: podIP untouched",
        destination,
        reaches: Some("application on 9080"),
        path: "pass",
        reason: "undeclared-port",
    }
    .run(lab)?;
    write!(flipped.did, ", {} ms after the write", elapsed.as_millis())?;
    Ok(vec![
        flipped,
        row(
            "the connection made before the change",
            (
                format!("answers {established:?}"),
                "direct".into(),
                "ingress-listener".into(),
            ),
            ("answers \"after\"", "direct", "ingress-listener"),
        ),
    ])
}

/// Connects within this process: quick enough to time the change.
fn banner_name(lab: &Lab, address: SocketAddr) -> anyhow::Result<String> {
    lab.client().netns.run(|| {
        let mut stream = TcpStream::connect_timeout(&address, DEADLINE)?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let seen: Seen = serde_json::from_str(&text)?;
        Ok(seen.name)
    })?
}
