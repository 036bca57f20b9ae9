//! Rules for `WorkloadEntry`: Istio's, and those for what binds it to this node.

use super::{
    SPEC,
    syntax::{self, UNIX},
};
use crate::model::{
    catalogue as codes,
    diagnostic::Finding,
    failure::{self, FailurePolicy},
    schema::nearest,
    settings,
    tree::{Node, join},
    workload::{
        ADDRESSES_ANNOTATION, ANNOTATION_PREFIX, CAPTURE_ANNOTATION, CGROUP_ANNOTATION,
        FAILURE_POLICY_ANNOTATION, NETNS_ANNOTATION, PROXY_ANNOTATION, PROXY_CGROUP_ANNOTATION,
        ROOT_ANNOTATION,
    },
};

/// What an endpoint's address may be besides an IP address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Address {
    /// A unix socket or a host name.
    Any,
    /// A unix socket.
    Unix,
    /// A host name.
    Host,
}

/// Checks a `WorkloadEntry`'s spec and its annotations, which are at `metadata.annotations`.
#[must_use]
pub fn workload_entry(spec: &Node, metadata: &Node) -> Vec<Finding> {
    let mut findings = Vec::new();
    endpoint(spec, Address::Any, None, SPEC, &mut findings);
    for (key, value) in metadata.labels("annotations") {
        if let Some(name) = key.strip_prefix(ANNOTATION_PREFIX) {
            annotation(key, name, value, &mut findings);
        }
    }
    findings
}

/// Checks an endpoint at `path`. `ports`: names of the service's ports, where they are known.
pub(super) fn endpoint(
    endpoint: &Node,
    allowed: Address,
    ports: Option<&[&str]>,
    path: &str,
    findings: &mut Vec<Finding>,
) {
    let address = endpoint.text("address");
    let mut bad = |name: &str, message: String| {
        findings.push(Finding::new(codes::BAD_ENDPOINT, join(path, name), message));
    };
    if address.is_empty() {
        // In another network only the gateway's address counts.
        if endpoint.text("network").is_empty() {
            bad("address", "an address is needed".into());
        }
    } else if let Some(socket) = address
        .strip_prefix(UNIX)
        .filter(|_| allowed != Address::Host)
    {
        if let Err(cause) = syntax::unix_address(socket) {
            bad("address", format!("`{address}`: {cause}"));
        }
        if !endpoint
            .get("ports")
            .map_or(&[][..], Node::entries)
            .is_empty()
        {
            bad("ports", "an endpoint on a unix socket has no ports".into());
        }
        if ports.is_some_and(|ports| ports.len() != 1) {
            bad(
                "address",
                "an endpoint on a unix socket needs exactly one service port".into(),
            );
        }
    } else if syntax::ip(address).is_none() {
        if allowed == Address::Unix {
            bad(
                "address",
                format!("`{address}` is neither an IP address nor a unix socket"),
            );
        } else if let Err(cause) = syntax::fqdn(address) {
            bad(
                "address",
                format!("`{address}` is neither an IP address nor a host: {cause}"),
            );
        }
    }
    let at_ports = join(path, "ports");
    for (key, port) in endpoint.get("ports").map_or(&[][..], Node::entries) {
        let path = format!("{at_ports}[{}]", key.name);
        if ports.is_some_and(|ports| !ports.contains(&key.name.as_str())) {
            let message = format!(
                "`{}` is not the name of one of the service's ports",
                key.name
            );
            findings.push(Finding::new(codes::BAD_ENDPOINT, &path, message).on_key());
        }
        if !syntax::is_dns_label(&key.name) {
            let message = format!("`{}` is not a DNS label", key.name);
            findings.push(Finding::new(codes::BAD_PORT_NAME, &path, message).on_key());
        }
        if let Some(number) = port.as_int().filter(|&number| !syntax::is_port(number)) {
            let message = format!("{number} is not in 1..65535");
            findings.push(Finding::new(codes::BAD_PORT, path, message));
        }
    }
    let at_labels = join(path, "labels");
    for (key, value) in endpoint.labels("labels") {
        if let Err(cause) = syntax::label(key, value) {
            findings.push(Finding::new(
                codes::BAD_LABELS,
                format!("{at_labels}[{key}]"),
                cause,
            ));
        }
    }
}

fn annotation(key: &str, name: &str, value: &str, findings: &mut Vec<Finding>) {
    let path = format!("metadata.annotations[{key}]");
    let known = [
        CGROUP_ANNOTATION,
        NETNS_ANNOTATION,
        ROOT_ANNOTATION,
        ADDRESSES_ANNOTATION,
        PROXY_ANNOTATION,
        PROXY_CGROUP_ANNOTATION,
        CAPTURE_ANNOTATION,
        FAILURE_POLICY_ANNOTATION,
    ];
    let settings = settings::ALL.iter().map(|setting| setting.annotation);
    if settings.clone().any(|known| known == key) {
        // Read, with its elements, by resolve.
        return;
    }
    let wrong = match key {
        FAILURE_POLICY_ANNOTATION => {
            if let Err(cause) = value.parse::<FailurePolicy>() {
                let remedy = format!("write {}", failure::EXPECTED);
                findings
                    .push(Finding::new(codes::BAD_CAPTURE_ANNOTATION, path, cause).remedy(remedy));
            }
            return;
        }
        CGROUP_ANNOTATION | PROXY_CGROUP_ANNOTATION => cgroup(value).err(),
        NETNS_ANNOTATION => netns(value).err(),
        ROOT_ANNOTATION => {
            (!value.starts_with('/')).then_some("it is not an absolute path of a directory")
        }
        ADDRESSES_ANNOTATION => value
            .split(',')
            .map(str::trim)
            .any(|address| !address.is_empty() && address.parse::<std::net::IpAddr>().is_err())
            .then_some("it is not a list of IP addresses separated by commas"),
        PROXY_ANNOTATION => {
            (!matches!(value, "none" | "external")).then_some("it is neither `none` nor `external`")
        }
        CAPTURE_ANNOTATION => {
            (!matches!(value, "on" | "off")).then_some("it is neither `on` nor `off`")
        }
        _ => {
            let mut finding = Finding::new(
                codes::UNKNOWN_CAPTURE_ANNOTATION,
                path,
                format!("`{name}` is not an annotation of this agent"),
            )
            .on_key();
            let names = known
                .into_iter()
                .chain(settings)
                .filter_map(|key| key.strip_prefix(ANNOTATION_PREFIX));
            if let Some(near) = nearest(name, names) {
                finding = finding.remedy(format!("did you mean `{ANNOTATION_PREFIX}{near}`?"));
            }
            findings.push(finding);
            return;
        }
    };
    if let Some(cause) = wrong {
        let message = format!("`{value}`: {cause}");
        findings.push(Finding::new(codes::BAD_CAPTURE_ANNOTATION, path, message));
    }
}

/// A path below the cgroup2 root, with or without a leading `/`, as in /proc/PID/cgroup.
fn cgroup(path: &str) -> Result<(), &'static str> {
    let below = path.strip_prefix('/').unwrap_or(path);
    let below = below.strip_suffix('/').unwrap_or(below);
    if below.is_empty() {
        return Err("the cgroup2 root itself would be every process of the node");
    }
    components(below)
}

fn netns(path: &str) -> Result<(), &'static str> {
    match path.strip_prefix('/') {
        Some(below) => components(below),
        None => Err("it is not an absolute path"),
    }
}

fn components(path: &str) -> Result<(), &'static str> {
    let odd = |part| matches!(part, "" | "." | "..");
    if path.split('/').any(odd) || path.contains('\0') {
        return Err("the path has empty parts, `.` or `..`");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_paths() {
        for good in [
            "a",
            "/a",
            "system.slice/x.service",
            "/kubepods.slice/pod1/",
            "a/..b",
        ] {
            assert!(cgroup(good).is_ok(), "{good}");
        }
        for bad in ["", "/", "//", "a/../b", "..", "../a", "./a", "a//b", "a\0b"] {
            assert!(cgroup(bad).is_err(), "{bad}");
        }
        for (path, good) in [
            ("/run/netns/a", true),
            ("run/netns/a", false),
            ("/run/../a", false),
        ] {
            assert_eq!(netns(path).is_ok(), good, "{path}");
        }
    }
}
