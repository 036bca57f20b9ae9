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
