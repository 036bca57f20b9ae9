//! A workload with an external proxy: a program with the proxy's uid on 15001 and 15006.

use std::net::SocketAddr;

use super::{Row, row};
use crate::{
    Client, Place, Server,
    apps::wire::canonical,
    lab::{Lab, service},
};

/// Istio's proxy user.
const PROXY: u32 = 1337;

const SIDECAR: &str = "\
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata:
  name: proxied
  namespace: prod-us1
spec:
  ingress:
  - port: {number: 9080, protocol: HTTP, name: http}
    defaultEndpoint: 127.0.0.1:8080
  - port: {number: 9443, protocol: TCP, name: real}
    captureMode: NONE
    defaultEndpoint: 127.0.0.1:8080
  egress:
  - hosts: ['*/*']
";

pub fn run() -> anyhow::Result<Vec<Row>> {
    let mut lab = Lab::new()?;
    lab.announce("10.96.0.0/16")?;
    lab.announce("fd96::/64")?;
    lab.serve("10.96.0.1:9080", "details")?;
    let proxies = [
        ("0.0.0.0:15001", "proxy outbound"),
        ("[::1]:15001", "proxy outbound v6"),
        ("0.0.0.0:15006", "proxy inbound"),
        ("[::1]:15006", "proxy inbound v6"),
        ("0.0.0.0:9443", "proxy on 9443"),
    ];
    for (address, name) in proxies {
        let server = Server::tcp(address.parse()?)
            .place(lab.inside().user(PROXY, PROXY))
            .name(name)
            .start()?;
        lab.keep(server);
    }
    lab.serve_inside("0.0.0.0:15021", "health")?;
    lab.write(
        "services.yaml",
        &service("prod-us1", "details", "10.96.0.1".parse()?, 9080),
    )?;
    lab.write("sidecar.yaml", SIDECAR)?;
    lab.write_workload(&[
        "capture.sidecar-agent.io/proxy: external",
        "capture.sidecar-agent.io/dual-stack: 'true'",
    ])?;
    lab.write_mesh("{}\n")?;
    lab.start_agent()?;

    let pod = lab.workload().v4;
    let pod6 = lab.workload().v6;
    let (inside, outside) = (lab.inside(), lab.outside());
    Ok(vec![
        captured(
            &lab,
            "outbound to a service",
            "10.96.0.1:9080",
            inside,
            "proxy outbound",
            "capture-all",
        )?,
        captured(
            &lab,
            "outbound by IPv6",
            "[fd96::1]:80",
            inside,
            "proxy outbound v6",
            "capture-all",
        )?,
        captured(
            &lab,
            "ingress 9080",
            &format!("inbound:{pod}:9080"),
            outside,
            "proxy inbound",
            "ingress-listener",
        )?,
        captured(
            &lab,
            "undeclared port inbound",
            &format!("inbound:{pod}:7000"),
            outside,
            "proxy inbound",
            "capture-all",
        )?,
        captured(
            &lab,
            "ingress 9080 by IPv6",
            &format!("inbound:[{pod6}]:9080"),
            outside,
            "proxy inbound v6",
            "ingress-listener",
        )?,
        passed(
            &lab,
            "the proxy's own call",
            "10.96.0.1:9080",
            inside.user(PROXY, PROXY),
            "details",
            "proxy-own",
        )?,
        passed(
            &lab,
            "ingress 9443 NONE: the proxy's real listener",
            &format!("inbound:{pod}:9443"),
            outside,
            "proxy on 9443",
            "none-listener",
        )?,
        passed(
            &lab,
            "always excluded: 15021",
            &format!("inbound:{pod}:15021"),
            outside,
            "health",
            "excluded-port",
        )?,
    ])
}

/// A connection that the proxy must get, with its original destination.
fn captured(
    lab: &Lab,
    asked: &str,
    destination: &str,
    place: Place<'_>,
    proxy: &str,
    reason: &str,
) -> anyhow::Result<Row> {
    let address: SocketAddr = destination.trim_start_matches("inbound:").parse()?;
    let outcome = Client::tcp(address).place(place).banner()?;
    let did = match &outcome.banner {
        Some(seen) => format!(
            "reached {}, original {}",
            seen.name,
            seen.original_dst
                .map_or("unknown".into(), |dst| canonical(dst).to_string())
        ),
        None => format!("failed with errno {:?}, {:?}", outcome.errno, outcome.error),
    };
    let explained = lab.explain(destination)?;
    let text = |field: &str| explained[field].as_str().unwrap_or("?").to_owned();
    let expected = format!("reached {proxy}, original {address}");
    Ok(row(
        asked,
        (did, text("path"), text("reason")),
        (&expected, "proxy", reason),
    ))
}

/// A connection that must not be touched.
fn passed(
    lab: &Lab,
    asked: &str,
    destination: &str,
    place: Place<'_>,
    name: &str,
    reason: &str,
) -> anyhow::Result<Row> {
    let address: SocketAddr = destination.trim_start_matches("inbound:").parse()?;
    let direction = if destination.starts_with("inbound:") {
        "inbound"
    } else {
        "outbound"
    };
    let before = lab.decisions(direction)?;
    let outcome = Client::tcp(address).place(place).banner()?;
    let did = match &outcome.banner {
        Some(seen) => format!("reached {}", seen.name),
        None => format!("failed with errno {:?}, {:?}", outcome.errno, outcome.error),
    };
    let counted = super::increased(&before, &lab.decisions(direction)?);
    let expected = format!("reached {name}");
    Ok(row(
        asked,
        (did, "pass".into(), counted),
        (&expected, "pass", reason),
    ))
}
