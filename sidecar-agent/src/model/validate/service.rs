//! Rules for Kubernetes' `Service`: only what decides where connections lead.

use std::{collections::BTreeSet, net::IpAddr};

use super::syntax;
use crate::model::{
    catalogue as codes,
    diagnostic::Finding,
    tree::{Node, Value, join},
};

/// `clusterIP` of a headless service.
pub const HEADLESS: &str = "None";

/// Checks a `Service`'s spec.
#[must_use]
pub fn service(spec: &Node) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut bad = |field: String, message: String| {
        findings.push(Finding::new(codes::BAD_SERVICE, field, message));
    };
    let ip = |text: &str| matches!(text, "" | HEADLESS) || text.parse::<IpAddr>().is_ok();
    let cluster_ip = spec.text("clusterIP");
    if !ip(cluster_ip) {
        bad(
            "spec.clusterIP".into(),
            format!("`{cluster_ip}` is not an IP address"),
        );
    }
    for (i, text) in spec
        .texts("clusterIPs")
        .enumerate()
        .filter(|(_, text)| !ip(text))
    {
        bad(
            format!("spec.clusterIPs[{i}]"),
            format!("`{text}` is not an IP address"),
        );
    }
    if spec.text("type") == "ExternalName"
        && let Err(cause) = syntax::fqdn(spec.text("externalName"))
    {
        bad("spec.externalName".into(), cause);
    }
    let mut seen = BTreeSet::new();
    for (i, port) in spec.list("ports").iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        let number = port.int("port").unwrap_or(0);
        if !syntax::is_port(number) {
            bad(join(&path, "port"), format!("{number} is not in 1..65535"));
        } else if !seen.insert((number, transport(port))) {
            bad(
                join(&path, "port"),
                format!("another port has number {number}"),
            );
        }
        match port.get("targetPort").map(|target| &target.value) {
            // Kubernetes takes 0 and nothing for the port itself.
            Some(Value::Int(target)) if *target != 0 && !syntax::is_port(*target) => {
                bad(
                    join(&path, "targetPort"),
                    format!("{target} is not in 1..65535"),
                );
            }
            Some(Value::Text(name)) if !name.is_empty() && !is_target_name(name) => {
                bad(
                    join(&path, "targetPort"),
                    format!("`{name}` is not the name of a port"),
                );
            }
            _ => {}
        }
    }
    findings
}

/// The transport protocol of a service's port: TCP where absent.
#[must_use]
pub fn transport(port: &Node) -> &str {
    match port.text("protocol") {
        "" => "TCP",
        protocol => protocol,
    }
}

/// Names of container ports have letters, so a number in quotes is a mistake.
fn is_target_name(name: &str) -> bool {
    syntax::is_dns_label(name) && name.bytes().any(|b| b.is_ascii_alphabetic())
}
