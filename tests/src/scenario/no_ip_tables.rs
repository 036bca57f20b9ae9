//! The reference's Sidecar `no-ip-tables`: nothing is captured; the listeners are real.

use super::{Check, Row, run_all};
use crate::{
    Client,
    lab::{Lab, service},
};

const SIDECAR: &str = include_str!("../../resources/no-ip-tables.yaml");
const MYSQL: &str = include_str!("../../resources/external-svc-mysql.yaml");

pub fn run() -> anyhow::Result<Vec<Row>> {
    let mut lab = Lab::new()?;
    lab.announce("10.96.0.0/16")?;
    lab.announce("10.98.0.0/16")?;
    lab.serve("10.98.0.10:3306", "mysql")?;
    lab.serve("10.96.0.4:9080", "secret")?;
    lab.dns.set("mysql.foo.com", &["10.98.0.10".parse()?]);
    lab.serve_inside("127.0.0.1:8080", "application")?;
    lab.serve_inside("0.0.0.0:7777", "other application")?;
    lab.write("sidecar.yaml", SIDECAR)?;
    lab.write("mysql.yaml", MYSQL)?;
    lab.write(
        "services.yaml",
        &service("other", "secret", "10.96.0.4".parse()?, 9080),
    )?;
    // Without a declared address (then Istio wants a network) a real ingress listener is on
    // 0.0.0.0, with one on that address.
    lab.write_workload_at("network: vms", &["sidecar.istio.io/interceptionMode: NONE"])?;
    lab.write_mesh("outboundTrafficPolicy:\n  mode: REGISTRY_ONLY\n")?;
    lab.start_agent()?;
    lab.agent()?
        .wait_until("mysql.foo.com to be resolved", |status| {
            !status["diagnostics"].to_string().contains("mysql.foo.com")
        })?;

    let workload = lab.workload().v4;
    let listener = format!("inbound:{workload}:9080");
    let other = format!("inbound:{workload}:7777");
    let mysql = Check {
        asked: "127.0.0.1:3306 leads to mysql.foo.com:3306",
        destination: "127.0.0.1:3306",
        reaches: Some("mysql"),
        path: "direct",
        reason: "egress-listener",
    };
    let ingress = Check {
        asked: "0.0.0.0:9080 leads to 127.0.0.1:8080",
        destination: &listener,
        reaches: Some("application"),
        path: "direct",
        reason: "ingress-listener",
    };
    let mut rows = vec![mysql.run(&lab)?, ingress.run(&lab)?];
    for (asked, destination) in [
        ("9080 called by the workload itself", listener.as_str()),
        ("the same on 127.0.0.1", "inbound:127.0.0.1:9080"),
    ] {
        let address = destination.trim_start_matches("inbound:").parse()?;
        let client = Client::tcp(address).place(lab.inside());
        let check = Check {
            asked,
            destination,
            ..ingress
        };
        rows.push(check.run_with(&lab, "inbound", client)?);
    }
    rows.extend(run_all(
        &lab,
        &[
            Check {
                asked: "any other port inbound: untouched",
                destination: &other,
                reaches: Some("other application"),
                path: "pass",
                reason: "interception-none",
            },
            Check {
                asked: "any other destination: untouched, even with REGISTRY_ONLY",
                destination: "10.96.0.4:9080",
                reaches: Some("secret"),
                path: "pass",
                reason: "interception-none",
            },
        ],
    )?);
    Ok(rows)
}
