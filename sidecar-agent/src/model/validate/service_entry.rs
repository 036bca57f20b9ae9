//! Rules for `ServiceEntry` (istio/istio `ValidateServiceEntry`).

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use super::{
    SPEC, sidecar, syntax,
    workload::{self, Address},
};
use crate::model::{
    catalogue as codes,
    diagnostic::Finding,
    tree::{Node, join},
};

/// Checks a `ServiceEntry`'s spec. `namespace` is `metadata.namespace`.
#[must_use]
pub fn service_entry(spec: &Node, namespace: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    sidecar::selector(spec, &mut findings);
    let resolution = match spec.text("resolution") {
        "" => "NONE",
        resolution => resolution,
    };
    hosts(spec, &mut findings);
    addresses(spec, resolution, &mut findings);
    ports(spec, resolution, &mut findings);
    endpoints(spec, resolution, &mut findings);
    export_to(spec, namespace, &mut findings);
    findings
}

/// Reads an element of `addresses`: an IP address or a network.
#[must_use]
pub fn network(text: &str) -> Option<IpNet> {
    if text.contains('/') {
        text.parse().ok()
    } else {
        text.parse::<IpAddr>().ok().map(IpNet::from)
    }
}

fn hosts(spec: &Node, findings: &mut Vec<Finding>) {
    let hosts = spec.list("hosts");
    if hosts.is_empty() {
        let message = "a service needs at least one host";
        findings.push(Finding::new(codes::BAD_SERVICE_HOST, "spec.hosts", message));
    }
    for (i, host) in hosts.iter().enumerate() {
        let Some(host) = host.as_text() else { continue };
        let wrong = match host {
            "*" => Some("every host cannot be one service".to_owned()),
            host => syntax::wildcard_domain(host).err(),
        };
        if let Some(cause) = wrong {
            let message = format!("`{host}`: {cause}");
            findings.push(Finding::new(
                codes::BAD_SERVICE_HOST,
                format!("spec.hosts[{i}]"),
                message,
            ));
        }
    }
}

fn addresses(spec: &Node, resolution: &str, findings: &mut Vec<Finding>) {
    for (i, address) in spec.list("addresses").iter().enumerate() {
        let Some(address) = address.as_text() else {
            continue;
        };
        let path = format!("spec.addresses[{i}]");
        if network(address).is_none() {
            let message = format!("`{address}` is neither an IP address nor a network");
            findings.push(Finding::new(codes::BAD_ADDRESS, path, message));
        } else if address.contains('/') && resolution.starts_with("DNS") {
            let message = format!("the network `{address}` does not fit resolution {resolution}");
            findings.push(Finding::new(codes::BAD_RESOLUTION, path, message));
        }
    }
}

fn ports(spec: &Node, resolution: &str, findings: &mut Vec<Finding>) {
    let mut names = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    for (i, port) in spec.list("ports").iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        let name = port.text("name");
        if !syntax::is_dns_label(name) {
            let message = format!("`{name}` is not a DNS label");
            findings.push(Finding::new(
                codes::BAD_PORT_NAME,
                join(&path, "name"),
                message,
            ));
        } else if !names.insert(name) {
            let message = format!("another port is called `{name}`");
            findings.push(Finding::new(
                codes::DUPLICATE_SERVICE_PORT,
                join(&path, "name"),
                message,
            ));
        }
        let number = port.int("number").unwrap_or(0);
        if !syntax::is_port(number) {
            let message = format!("{number} is not in 1..65535");
            findings.push(Finding::new(
                codes::BAD_PORT,
                join(&path, "number"),
                message,
            ));
        } else if !numbers.insert(number) {
            let message = format!("another port has number {number}");
            findings.push(Finding::new(
                codes::DUPLICATE_SERVICE_PORT,
                join(&path, "number"),
                message,
            ));
        }
        if let Some(target) = port.int("targetPort").filter(|&target| target != 0) {
            let path = join(&path, "targetPort");
            if !syntax::is_port(target) {
                let message = format!("{target} is not in 1..65535");
                findings.push(Finding::new(codes::BAD_PORT, path, message));
            } else if resolution == "NONE" {
                let message = "targetPort has no effect with resolution NONE";
                findings.push(Finding::new(codes::SERVICE_WARNING, path, message));
            }
        }
        let protocol = port.text("protocol");
        if !protocol.is_empty() && syntax::protocol(protocol).is_none() {
            let message = format!("`{protocol}` is not supported");
            findings.push(Finding::new(
                codes::BAD_PROTOCOL,
                join(&path, "protocol"),
                message,
            ));
        }
    }
    let plain = |port: &Node| {
        matches!(
            syntax::protocol(port.text("protocol")),
            None | Some(syntax::Protocol::Other)
        )
    };
    if resolution != "NONE"
        && spec.list("hosts").len() > 1
        && let Some(i) = spec.list("ports").iter().position(plain)
    {
        findings.push(Finding::new(
            codes::BAD_RESOLUTION,
            format!("spec.ports[{i}]"),
            "connections to a port that is neither HTTP nor TLS cannot be told apart by host, \
             but there are several hosts",
        ));
    }
}

fn endpoints(spec: &Node, resolution: &str, findings: &mut Vec<Finding>) {
    let at = "spec.endpoints";
    let endpoints = spec.list("endpoints");
    let selects = spec.get("workloadSelector").is_some();
    if selects && !endpoints.is_empty() {
        let message = "endpoints and workloadSelector exclude each other";
        findings.push(Finding::new(codes::EXCLUSIVE_FIELDS, at, message));
    }
    if selects && resolution != "STATIC" {
        let message = format!("workloadSelector has no effect with resolution {resolution}");
        findings.push(Finding::new(
            codes::SERVICE_WARNING,
            "spec.workloadSelector",
            message,
        ));
    }
    let names: Vec<&str> = spec
        .list("ports")
        .iter()
        .map(|port| port.text("name"))
        .collect();
    let mut bad = |path: &str, message: &str| {
        findings.push(Finding::new(codes::BAD_RESOLUTION, path, message));
    };
    let allowed = match resolution {
        "NONE" => {
            if !endpoints.is_empty() {
                bad(
                    at,
                    "resolution NONE takes no endpoints: connections keep their destination",
                );
            }
            return;
        }
        "STATIC" => Address::Unix,
        "DNS" | "DNS_ROUND_ROBIN" => {
            if resolution == "DNS_ROUND_ROBIN" && endpoints.len() > 1 {
                bad(at, "resolution DNS_ROUND_ROBIN takes at most one endpoint");
            }
            if endpoints.is_empty() {
                for (i, host) in spec.list("hosts").iter().enumerate() {
                    if host.as_text().is_some_and(|host| host.starts_with("*.")) {
                        bad(
                            &format!("{SPEC}.hosts[{i}]"),
                            "a wildcard cannot be resolved, and there are no endpoints",
                        );
                    }
                }
            }
            Address::Host
        }
        other => {
            bad(
                "spec.resolution",
                &format!("resolution {other} needs a layer 7 proxy; it cannot be captured"),
            );
            return;
        }
    };
    for (i, endpoint) in endpoints.iter().enumerate() {
        workload::endpoint(
            endpoint,
            allowed,
            Some(&names),
            &format!("{at}[{i}]"),
            findings,
        );
    }
}

/// `exportTo`, which is also an annotation of services.
fn export_to(spec: &Node, namespace: &str, findings: &mut Vec<Finding>) {
    let mut seen = BTreeSet::new();
    let all = spec.list("exportTo");
    for (i, to) in all.iter().enumerate() {
        let Some(to) = to.as_text() else { continue };
        let cause = if !matches!(to, "." | "*" | "~") && !syntax::is_dns_label(to) {
            "it is neither a namespace nor `.`, `*` or `~`"
        } else if matches!(to, "*" | "~") && all.len() > 1 {
            "it stands alone or not at all"
        } else if !seen.insert(if to == "." { namespace } else { to }) {
            "it is listed already"
        } else {
            continue;
        };
        let message = format!("`{to}`: {cause}");
        findings.push(Finding::new(
            codes::BAD_EXPORT_TO,
            format!("spec.exportTo[{i}]"),
            message,
        ));
    }
}
