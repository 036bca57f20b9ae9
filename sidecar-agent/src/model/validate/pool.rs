//! Rules for `ConnectionPoolSettings`.

use crate::model::{
    catalogue::{BAD_DURATION, BAD_POOL},
    diagnostic::Finding,
    schema::{NANOS_PER_MILLI, nanoseconds},
    tree::{Node, join},
};

/// Checks the pool at `path`.
pub(super) fn check(pool: &Node, path: &str, findings: &mut Vec<Finding>) {
    let (http, tcp) = (pool.get("http"), pool.get("tcp"));
    if http.is_none() && tcp.is_none() {
        findings.push(Finding::new(
            BAD_POOL,
            path,
            "neither `tcp` nor `http` is set",
        ));
    }
    if let Some(http) = http {
        let path = join(path, "http");
        for name in [
            "http1MaxPendingRequests",
            "http2MaxRequests",
            "maxRequestsPerConnection",
            "maxRetries",
            "maxConcurrentStreams",
        ] {
            not_negative(http, name, &path, findings);
        }
        at_least_a_millisecond(http, "idleTimeout", &path, findings);
        if http.text("h2UpgradePolicy") == "UPGRADE" && http.flag("useClientProtocol") {
            findings.push(Finding::new(
                BAD_POOL,
                join(&path, "useClientProtocol"),
                "useClientProtocol excludes h2UpgradePolicy UPGRADE",
            ));
        }
        if let Some(keepalive) = http.get("http2KeepAlive") {
            let path = join(&path, "http2KeepAlive");
            for name in ["interval", "timeout"] {
                if keepalive.get(name).is_none() {
                    findings.push(Finding::new(
                        BAD_POOL,
                        join(&path, name),
                        "interval and timeout are needed both",
                    ));
                }
                at_least_a_millisecond(keepalive, name, &path, findings);
            }
        }
    }
    if let Some(tcp) = tcp {
        let path = join(path, "tcp");
        not_negative(tcp, "maxConnections", &path, findings);
        at_least_a_millisecond(tcp, "connectTimeout", &path, findings);
        at_least_a_millisecond(tcp, "maxConnectionDuration", &path, findings);
        // Zero switches this one off.
        if tcp
            .get("idleTimeout")
            .and_then(Node::as_text)
            .and_then(nanoseconds)
            != Some(0)
        {
            at_least_a_millisecond(tcp, "idleTimeout", &path, findings);
        }
    }
}

fn not_negative(node: &Node, name: &str, path: &str, findings: &mut Vec<Finding>) {
    if let Some(value) = node.int(name).filter(|&value| value < 0) {
        findings.push(Finding::new(
            BAD_POOL,
            join(path, name),
            format!("{value} is negative"),
        ));
    }
}

fn at_least_a_millisecond(node: &Node, name: &str, path: &str, findings: &mut Vec<Finding>) {
    let Some(text) = node.get(name).and_then(Node::as_text) else {
        return;
    };
    let message = match nanoseconds(text) {
        None => format!("`{text}` is not a duration"),
        Some(n) if n < NANOS_PER_MILLI => format!("`{text}` is shorter than 1ms"),
        Some(n) if n % NANOS_PER_MILLI != 0 => format!("`{text}` is not in whole milliseconds"),
        Some(_) => return,
    };
    findings.push(Finding::new(BAD_DURATION, join(path, name), message));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tree::{Source, parse};

    #[test]
    fn rules() {
        for (pool, expected) in [
            (
                "{tcp: {maxConnections: 1, connectTimeout: 1ms, idleTimeout: 0s}}",
                &[][..],
            ),
            ("{http: {http2KeepAlive: {interval: 1s, timeout: 1s}}}", &[]),
            ("{http: {h2UpgradePolicy: UPGRADE}}", &[]),
            ("{http: {useClientProtocol: true}}", &[]),
            ("{}", &["p"]),
            ("{tcp: {maxConnections: -1}}", &["p.tcp.maxConnections"]),
            ("{tcp: {connectTimeout: 0s}}", &["p.tcp.connectTimeout"]),
            (
                "{tcp: {maxConnectionDuration: 1500us}}",
                &["p.tcp.maxConnectionDuration"],
            ),
            ("{tcp: {idleTimeout: 1us}}", &["p.tcp.idleTimeout"]),
            ("{http: {idleTimeout: soon}}", &["p.http.idleTimeout"]),
            (
                "{http: {http1MaxPendingRequests: -1, http2MaxRequests: -1, \
                 maxRequestsPerConnection: -1, maxRetries: -1, maxConcurrentStreams: -1}}",
                &[
                    "p.http.http1MaxPendingRequests",
                    "p.http.http2MaxRequests",
                    "p.http.maxRequestsPerConnection",
                    "p.http.maxRetries",
                    "p.http.maxConcurrentStreams",
                ],
            ),
            (
                "{http: {h2UpgradePolicy: UPGRADE, useClientProtocol: true}}",
                &["p.http.useClientProtocol"],
            ),
            (
                "{http: {http2KeepAlive: {interval: 1s}}}",
                &["p.http.http2KeepAlive.timeout"],
            ),
        ] {
            let (nodes, _) = parse(&Source::new("t", pool));
            let mut findings = Vec::new();
            check(&nodes[0], "p", &mut findings);
            let fields: Vec<_> = findings.iter().map(|found| found.field.as_str()).collect();
            assert_eq!(fields, expected, "{pool}");
        }
    }
}
