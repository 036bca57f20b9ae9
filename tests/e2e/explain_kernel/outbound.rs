//! What leaves: by the relay, by IPv6, from an address, and datagrams.

use std::net::{IpAddr, SocketAddr};

use anyhow::ensure;
use sidecar_tests::{
    lab::{Lab, service},
    require_root,
};

use super::{agrees, ask};
use crate::fixture::{SIDECAR, registry_only, relayed_service};

#[test]
fn what_is_relayed_leads_to_the_relay() -> anyhow::Result<()> {
    require_root!();
    let mut lab = Lab::new()?;
    lab.announce("10.96.0.0/16")?;
    lab.write(
        "relayed.yaml",
        &relayed_service("10.96.0.1, '2001:db8:96::1'"),
    )?;
    lab.write_mesh("{}\n")?;
    lab.write_workload(&[])?;
    lab.start_agent()?;
    for destination in ["10.96.0.1:9080", "[2001:db8:96::1]:9080"] {
        let relayed = agrees(&lab, &[destination], "relay", "egress-service")?;
        let target: SocketAddr = relayed["target"].as_str().unwrap_or_default().parse()?;
        ensure!(target.ip().is_loopback(), "{relayed}");
    }
    // No one has connected.
    ensure!(lab.relayed()? == 0, "{}", lab.relayed()?);
    let status = lab.agent()?.status()?;
    let maps = status["maps"].as_array().into_iter().flatten();
    let left = maps.filter(|map| map["map"] == "ORIGINAL_DST" && map["entries"] != 0);
    ensure!(
        left.count() == 0,
        "an original destination is left: {status}"
    );
    Ok(())
}

#[test]
fn by_ipv6_and_from_an_address_it_is_the_same() -> anyhow::Result<()> {
    require_root!();
    let mut lab = registry_only()?;
    lab.announce("2001:db8:96::/48")?;
    let cluster: IpAddr = "2001:db8:96::2".parse()?;
    lab.write("v6.yaml", &service("prod-us1", "reviews", cluster, 9080))?;
    lab.write("sidecar.yaml", SIDECAR)?;
    lab.start_agent()?;
    let service = format!("[{cluster}]:9080");
    let direct = agrees(&lab, &[&service], "direct", "egress-service")?;
    ensure!(direct["target"] == service, "{direct}");
    let from = lab.workload().v4.to_string();
    agrees(
        &lab,
        &["10.96.0.1:9080", "--from", &from],
        "direct",
        "egress-service",
    )?;
    // One that is nobody's: it cannot be bound.
    let output = lab.agent()?.cli(&[
        "explain",
        "--kernel",
        sidecar_tests::lab::WORKLOAD,
        "10.96.0.1:9080",
        "--from",
        "192.0.2.7",
    ])?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(
        !output.status.success() && error.contains("opening a socket"),
        "{error}"
    );
    Ok(())
}

#[test]
fn a_dns_query_is_led_to_the_proxy_if_it_is_there() -> anyhow::Result<()> {
    require_root!();
    let mut lab = Lab::new()?;
    lab.write_mesh("{}\n")?;
    lab.write_workload(&[
        "capture.sidecar-agent.io/proxy: external",
        "capture.sidecar-agent.io/dns-capture: 'true'",
        "capture.sidecar-agent.io/dns-capture-all: 'true'",
        "capture.sidecar-agent.io/failure-policy: proxy-gone=open",
    ])?;
    lab.start_agent()?;
    let query = "10.96.0.10:53";
    let gone = agrees(&lab, &["--udp", query], "pass", "proxy-gone")?;
    ensure!(
        gone["notes"].to_string().contains("by proxy-gone=open"),
        "{gone}"
    );
    let socket = lab
        .workload()
        .netns
        .run(|| std::net::UdpSocket::bind("127.0.0.1:15053"))??;
    let led = agrees(&lab, &["--udp", query], "proxy", "dns")?;
    ensure!(led["target"] == "127.0.0.1:15053", "{led}");
    drop(socket);
    // No program looks at it.
    let (said, success) = ask(&lab, &["--udp", "10.96.0.10:123"])?;
    ensure!(success && said["kernel"]["decided"].is_null(), "{said:#}");
    Ok(())
}
