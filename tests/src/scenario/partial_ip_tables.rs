//! The reference's Sidecar `partial-ip-tables`: a VM, captured on one side only.

use super::{Check, Row, run_all};
use crate::{
    Client, Namespace, Place,
    lab::{Lab, service},
};

const SIDECAR: &str = include_str!("../../resources/partial-ip-tables.yaml");

pub fn run() -> anyhow::Result<Vec<Row>> {
    let mut lab = Lab::new()?;
    lab.announce("192.168.0.0/16")?;
    lab.announce("10.96.0.0/16")?;
    let lan = second_interface(&lab)?;
    lab.serve("192.168.5.5:80", "internal")?;
    lab.serve("192.168.9.9:80", "unknown internal")?;
    lab.serve("10.96.0.4:9080", "elsewhere")?;
    lab.serve_inside("127.0.0.1:8080", "application")?;
    lab.serve_inside("172.16.1.33:80", "own web server")?;
    lab.serve_inside("0.0.0.0:8081", "own admin server")?;
    lab.write("sidecar.yaml", SIDECAR)?;
    lab.write(
        "services.yaml",
        &service("shop", "internal", "192.168.5.5".parse()?, 80),
    )?;
    lab.write_workload(&["traffic.sidecar.istio.io/includeOutboundIPRanges: 192.168.0.0/16"])?;
    lab.write_mesh("outboundTrafficPolicy:\n  mode: REGISTRY_ONLY\n")?;
    lab.start_agent()?;

    let mut rows = run_all(
        &lab,
        &[
            Check {
                asked: "192.168.0.0/16 captured outbound: a service",
                destination: "192.168.5.5:80",
                reaches: Some("internal"),
                path: "direct",
                reason: "egress-service",
            },
            Check {
                asked: "192.168.0.0/16 captured outbound: no service",
                destination: "192.168.9.9:80",
                reaches: None,
                path: "deny",
                reason: "registry-only",
            },
            Check {
                asked: "outside 192.168.0.0/16: untouched",
                destination: "10.96.0.4:9080",
                reaches: Some("elsewhere"),
                path: "pass",
                reason: "not-included",
            },
        ],
    )?;
    let untouched = |asked, destination, name| Check {
        asked,
        destination,
        reaches: Some(name),
        path: "pass",
        reason: "undeclared-port",
    };
    for check in [
        Check {
            asked: "172.16.1.32:80 leads to 127.0.0.1:8080",
            destination: "inbound:172.16.1.32:80",
            reaches: Some("application"),
            path: "direct",
            reason: "ingress-listener",
        },
        untouched(
            "port 80 of another address",
            "inbound:172.16.1.33:80",
            "own web server",
        ),
        untouched(
            "another port of 172.16.1.32",
            "inbound:172.16.1.32:8081",
            "own admin server",
        ),
    ] {
        let address = check.destination.trim_start_matches("inbound:").parse()?;
        let client = Client::tcp(address).place(Place::here().netns(&lan));
        rows.push(check.run_with(&lab, "inbound", client)?);
    }
    Ok(rows)
}

/// Gives the workload an interface on 172.16.0.0/16; returns a neighbour there.
fn second_interface(lab: &Lab) -> anyhow::Result<Namespace> {
    let lan = Namespace::new("lan")?;
    let workload = &lab.workload().netns;
    lan.ip(&format!(
        "link add eth0 type veth peer name eth1 netns {}",
        workload.name()
    ))?;
    lan.add_address("eth0", "172.16.0.1/16".parse()?)?;
    workload.add_address("eth1", "172.16.1.32/16".parse()?)?;
    workload.add_address("eth1", "172.16.1.33/16".parse()?)?;
    workload.ip("link set eth1 up")?;
    lan.ip("link set eth0 up")?;
    Ok(lan)
}
