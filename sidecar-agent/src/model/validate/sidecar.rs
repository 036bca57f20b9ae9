//! The rules of Istio's validating webhook for `Sidecar`
//! (istio/istio `ValidateSidecar`, 86c9f01fd735), all findings at once.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    SPEC, pool,
    syntax::{self, UNIX},
    tls,
};
use crate::model::{
    Compat, catalogue as codes,
    diagnostic::Finding,
    tree::{Node, Value, join},
};

/// As [`webhook_as`], by current Istio's rules.
#[must_use]
pub fn webhook(spec: &Node, namespace: &str) -> Vec<Finding> {
    webhook_as(spec, namespace, Compat::default())
}

/// Checks a `Sidecar`'s spec. `namespace` is `metadata.namespace`, which `.` stands for in hosts.
///
/// Expects the types that the CRD schema asks for; values of another type count as absent.
#[must_use]
pub fn webhook_as(spec: &Node, namespace: &str, compat: Compat) -> Vec<Finding> {
    let mut findings = Vec::new();
    selector(spec, &mut findings);
    if findings.iter().any(Finding::is_error) {
        return findings;
    }
    let configures = |name| spec.get(name).is_some();
    if spec.list("egress").is_empty()
        && spec.list("ingress").is_empty()
        && !configures("outboundTrafficPolicy")
        && !configures("inboundConnectionPool")
    {
        findings.push(Finding::new(
            codes::EMPTY_SIDECAR,
            SPEC,
            "nothing is configured",
        ));
        return findings;
    }
    ingress(spec.list("ingress"), compat, &mut findings);
    if let Some(settings) = spec.get("inboundConnectionPool") {
        pool::check(
            settings,
            &join(SPEC, "inboundConnectionPool"),
            &mut findings,
        );
    }
    egress(spec.list("egress"), namespace, compat, &mut findings);
    if let Some(policy) = spec.get("outboundTrafficPolicy") {
        outbound_traffic_policy(policy, &mut findings);
    }
    findings
}

/// `workloadSelector`, the same in `Sidecar` and `ServiceEntry`.
pub(super) fn selector(spec: &Node, findings: &mut Vec<Finding>) {
    let Some(selector) = spec.get("workloadSelector") else {
        return;
    };
    let path = "spec.workloadSelector.labels";
    let mut labels = selector.labels("labels").peekable();
    if labels.peek().is_none() {
        findings.push(Finding::new(
            codes::SELECTOR_WITHOUT_LABELS,
            "spec.workloadSelector",
            "the selector has no labels, so it selects every workload of the namespace",
        ));
    }
    for (key, value) in labels {
        let message = if key.is_empty() {
            "the key of a label is empty".into()
        } else if key.contains('*') || value.contains('*') {
            format!("`{key}: {value}`: `*` is not a wildcard in a selector")
        } else {
            continue;
        };
        findings.push(Finding::new(
            codes::BAD_SELECTOR,
            format!("{path}[{key}]"),
            message,
        ));
    }
}

/// Whether listeners of this direction can be bound to unix sockets (and then have port 0).
///
/// Istio's first description of the Sidecar allowed both directions; current Istio refuses unix
/// sockets for ingress. This is the one place where that is decided.
fn unix_bind_allowed(direction: Direction, compat: Compat) -> bool {
    direction == Direction::Egress || compat == Compat::Istio1_0
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

/// Ports and unix sockets that listeners of one direction have so far.
struct Taken {
    compat: Compat,
    ports: BTreeSet<i128>,
    unix: BTreeSet<String>,
}

impl Taken {
    fn new(compat: Compat) -> Self {
        Self {
            compat,
            ports: BTreeSet::new(),
            unix: BTreeSet::new(),
        }
    }
}

fn ingress(listeners: &[Node], compat: Compat, findings: &mut Vec<Finding>) {
    let mut taken = Taken::new(compat);
    for (i, listener) in listeners.iter().enumerate() {
        let path = format!("{SPEC}.ingress[{i}]");
        if listener.value == Value::Null {
            findings.push(Finding::new(
                codes::WRONG_TYPE,
                path,
                "the listener is empty",
            ));
            continue;
        }
        let Some(port) = listener.get("port") else {
            findings.push(Finding::new(
                codes::MISSING_FIELD,
                join(&path, "port"),
                "an ingress listener needs a port",
            ));
            continue;
        };
        address(
            listener,
            port,
            Direction::Ingress,
            &path,
            &mut taken,
            findings,
        );
        let endpoint = listener.text("defaultEndpoint");
        if !endpoint.is_empty()
            && let Err(cause) = default_endpoint(endpoint)
        {
            findings.push(Finding::new(
                codes::BAD_DEFAULT_ENDPOINT,
                join(&path, "defaultEndpoint"),
                format!("`{endpoint}`: {cause}"),
            ));
        }
        if let Some(settings) = listener.get("tls") {
            tls::check(
                settings,
                port.text("protocol"),
                &join(&path, "tls"),
                findings,
            );
        }
        if let Some(settings) = listener.get("connectionPool") {
            let path = join(&path, "connectionPool");
            pool::check(settings, &path, findings);
            let http = syntax::protocol(port.text("protocol")) == Some(syntax::Protocol::Http);
            if settings.get("http").is_some() && !http {
                findings.push(Finding::new(
                    codes::HTTP_POOL_ON_TCP,
                    join(&path, "http"),
                    "the port's protocol is not HTTP, so only the tcp settings apply",
                ));
            }
        }
    }
}

fn egress(listeners: &[Node], namespace: &str, compat: Compat, findings: &mut Vec<Finding>) {
    let mut taken = Taken::new(compat);
    for (i, listener) in listeners.iter().enumerate() {
        let path = format!("{SPEC}.egress[{i}]");
        if listener.value == Value::Null {
            findings.push(Finding::new(
                codes::WRONG_TYPE,
                path,
                "the listener is empty",
            ));
            continue;
        }
        if let Some(port) = listener.get("port") {
            address(
                listener,
                port,
                Direction::Egress,
                &path,
                &mut taken,
                findings,
            );
        } else if i + 1 != listeners.len() {
            findings.push(Finding::new(
                codes::CATCH_ALL_NOT_LAST,
                join(&path, "port"),
                "the listener has no port, but others follow",
            ));
        }
        hosts(listener, namespace, &join(&path, "hosts"), findings);
    }
}

/// Port, bind address and capture mode of a listener that has a port.
fn address(
    listener: &Node,
    port: &Node,
    direction: Direction,
    path: &str,
    taken: &mut Taken,
    findings: &mut Vec<Finding>,
) {
    let at_port = join(path, "port");
    let at_number = join(&at_port, "number");
    let bind = listener.text("bind");
    let number = port.int("number").unwrap_or(0);

    if port.int("targetPort").is_some_and(|target| target > 0) {
        let message = "targetPort has no effect in a Sidecar";
        findings.push(Finding::new(
            codes::TARGET_PORT,
            join(&at_port, "targetPort"),
            message,
        ));
    }
    let name = port.text("name");
    if !name.is_empty() && !syntax::is_dns_label(name) {
        let message = format!("`{name}` is not a DNS label");
        findings.push(Finding::new(
            codes::BAD_PORT_NAME,
            join(&at_port, "name"),
            message,
        ));
    }
    let protocol = port.text("protocol");
    if !protocol.is_empty() && syntax::protocol(protocol).is_none() {
        let message = format!("`{protocol}` is not supported");
        findings.push(Finding::new(
            codes::BAD_PROTOCOL,
            join(&at_port, "protocol"),
            message,
        ));
    }

    if number == 0 && unix_bind_allowed(direction, taken.compat) {
        if direction == Direction::Ingress {
            findings.push(Finding::new(
                codes::COMPATIBILITY,
                join(path, "bind"),
                "current Istio refuses ingress listeners with port 0 on unix sockets",
            ));
        }
        unix_bind(listener, bind, path, taken, findings);
        return;
    }
    if !syntax::is_port(number) {
        let message = format!("{number} is not in 1..65535");
        findings.push(Finding::new(codes::BAD_PORT, &at_number, message));
    }
    if !bind.is_empty() && syntax::ip(bind).is_none() {
        let mut finding = Finding::new(
            codes::BAD_BIND,
            join(path, "bind"),
            format!("`{bind}` is not an IP address"),
        );
        if bind.starts_with(UNIX) {
            finding = finding.remedy(if unix_bind_allowed(direction, taken.compat) {
                "set port.number to 0 to listen on a unix socket"
            } else {
                "bind to an IP address; ingress listeners cannot be unix sockets"
            });
        }
        findings.push(finding);
    }
    // The number counts as taken even where it is invalid, as in Istio.
    if !taken.ports.insert(number) {
        let message = format!("another listener has port {number}");
        findings.push(Finding::new(codes::PORT_TWICE, at_number, message));
    }
}

fn unix_bind(
    listener: &Node,
    bind: &str,
    path: &str,
    taken: &mut Taken,
    findings: &mut Vec<Finding>,
) {
    let at_bind = join(path, "bind");
    let wrong = match bind.strip_prefix(UNIX) {
        Some(address) => syntax::unix_address(address).err(),
        None => Some("port 0 needs a unix socket to listen on".into()),
    };
    if let Some(cause) = wrong {
        findings.push(Finding::new(
            codes::BAD_BIND,
            &at_bind,
            format!("`{bind}`: {cause}"),
        ));
    }
    let mode = listener.text("captureMode");
    if !matches!(mode, "" | "DEFAULT" | "NONE") {
        findings.push(Finding::new(
            codes::UNIX_CAPTURE_MODE,
            join(path, "captureMode"),
            format!("{mode} does not fit a unix socket"),
        ));
    }
    if !taken.unix.insert(bind.into()) {
        let message = format!("another listener is bound to `{bind}`");
        findings.push(Finding::new(codes::UNIX_BIND_TWICE, at_bind, message));
    }
}

fn default_endpoint(endpoint: &str) -> Result<(), String> {
    if let Some(address) = endpoint.strip_prefix(UNIX) {
        return syntax::unix_address(address);
    }
    let (host, port) = syntax::host_port(endpoint)?;
    // Compared as text: other spellings of the same addresses are refused.
    if !matches!(host, "" | "127.0.0.1" | "0.0.0.0" | "::1" | "::") {
        return Err(format!("`{host}` is not 127.0.0.1, ::1, 0.0.0.0 or ::"));
    }
    match port.parse::<i128>() {
        Ok(number) if syntax::is_port(number) => Ok(()),
        Ok(number) => Err(format!("port {number} is not in 1..65535")),
        Err(_) => Err(format!("`{port}` is not a port number")),
    }
}

fn hosts(listener: &Node, namespace: &str, path: &str, findings: &mut Vec<Finding>) {
    let hosts = listener.list("hosts");
    if hosts.is_empty() {
        findings.push(Finding::new(
            codes::NO_HOSTS,
            path,
            "the listener has no hosts",
        ));
        return;
    }
    // DNS names seen so far, by namespace.
    let mut seen: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (i, host) in hosts.iter().enumerate() {
        let Some(host) = host.as_text() else { continue };
        let path = format!("{path}[{i}]");
        // Exclusions are neither duplicates nor made pointless by `*/*`.
        if let Some((of, name)) = host.split_once('/').filter(|_| !host.starts_with('~')) {
            let names = seen
                .entry(if of == "." { namespace } else { of })
                .or_default();
            let covered = if name == "*" {
                !names.is_empty()
            } else {
                names.contains(name) || names.contains("*")
            };
            if covered {
                let message = format!("`{host}` is covered by another entry, or covers one");
                findings.push(Finding::new(codes::DUPLICATE_HOST, &path, message));
            }
            names.insert(name);
        }
        if let Err(cause) = egress_host(host) {
            findings.push(Finding::new(
                codes::BAD_HOST,
                path,
                format!("`{host}`: {cause}"),
            ));
        }
    }
    if seen.len() > 1 && seen.get("*").is_some_and(|names| names.contains("*")) {
        let message = "`*/*` selects everything, so the other hosts add nothing";
        findings.push(Finding::new(codes::WILDCARD_WITH_OTHERS, path, message));
    }
}

/// The grammar of an egress host: `namespace/dnsName`.
fn egress_host(host: &str) -> Result<(), String> {
    let Some((namespace, name)) = host.split_once('/') else {
        return Err("it must be `namespace/dnsName`".into());
    };
    if namespace.is_empty() || name.is_empty() {
        return Err("neither the namespace nor the DNS name can be empty".into());
    }
    let excluded = namespace.strip_prefix('~');
    let of = excluded.unwrap_or(namespace);
    // `~/x` excludes from all namespaces.
    let all = excluded == Some("") || of == "*" || of == ".";
    if !all && !syntax::is_dns_label(of) {
        return Err(format!(
            "`{namespace}` is neither a namespace nor `*` or `.`"
        ));
    }
    if name != "*" && !name.contains('.') {
        return Err(format!(
            "`{name}` is a short name; DNS names are written in full"
        ));
    }
    syntax::wildcard_domain(name)
}

fn outbound_traffic_policy(policy: &Node, findings: &mut Vec<Finding>) {
    let path = "spec.outboundTrafficPolicy";
    let mode = policy.text("mode");
    if mode == "ALLOW_ANY_DYNAMIC_DNS" {
        let message = "ALLOW_ANY_DYNAMIC_DNS can be set only for the whole mesh";
        findings.push(Finding::new(
            codes::BAD_OUTBOUND_POLICY,
            join(path, "mode"),
            message,
        ));
    }
    let Some(proxy) = policy.get("egressProxy") else {
        return;
    };
    let path = join(path, "egressProxy");
    if mode != "ALLOW_ANY" {
        let message = "egressProxy needs mode ALLOW_ANY; an absent mode is REGISTRY_ONLY";
        findings.push(Finding::new(codes::BAD_EGRESS_PROXY, path, message));
        return;
    }
    let mut bad = |name: &str, message: String| {
        let field = format!("{path}.{name}");
        findings.push(Finding::new(codes::BAD_EGRESS_PROXY, field, message));
    };
    let host = proxy.text("host");
    if let Err(cause) = syntax::fqdn(host) {
        bad("host", format!("`{host}`: {cause}"));
    }
    let subset = proxy.text("subset");
    if !subset.is_empty() && !syntax::is_dns_label(subset) {
        bad("subset", format!("`{subset}` is not a DNS label"));
    }
    match proxy
        .get("port")
        .map(|port| port.int("number").unwrap_or(0))
    {
        None => bad("port", "a port is needed".into()),
        Some(number) if !syntax::is_port(number) => {
            bad("port.number", format!("{number} is not in 1..65535"));
        }
        Some(_) => {}
    }
}
