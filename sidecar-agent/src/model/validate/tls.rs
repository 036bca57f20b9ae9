//! Rules for the TLS settings of an ingress listener.

use std::collections::BTreeSet;

use super::syntax::{self, Protocol};
use crate::model::{
    catalogue::{BAD_TLS, TLS_WARNING},
    diagnostic::Finding,
    tree::{Node, join},
};

/// The cipher suites that Envoy knows.
const CIPHER_SUITES: [&str; 15] = [
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES256-SHA",
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA",
    "AES256-SHA",
    "DES-CBC3-SHA",
];

/// Where a server's certificate can come from.
const CREDENTIALS: [&str; 3] = ["credentialName", "credentialNames", "tlsCertificates"];

/// Files that a server that terminates TLS can use.
const FILES: [&str; 4] = ["serverCertificate", "privateKey", "caCertificates", "caCrl"];

/// Checks the TLS settings at `path` of a listener with this protocol.
pub(super) fn check(tls: &Node, protocol: &str, path: &str, findings: &mut Vec<Finding>) {
    let at = |name| join(path, name);
    let mode = tls.text("mode");
    let set = |name: &str| !tls.list(name).is_empty() || !tls.text(name).is_empty();

    for name in CREDENTIALS.into_iter().chain(["subjectAltNames"]) {
        if set(name) {
            let message = format!("`{name}` is not supported in a Sidecar");
            findings.push(Finding::new(BAD_TLS, at(name), message));
        }
    }
    if tls.flag("httpsRedirect") {
        let message = "`httpsRedirect` is not supported in a Sidecar";
        findings.push(Finding::new(BAD_TLS, at("httpsRedirect"), message));
    }
    if matches!(mode, "ISTIO_MUTUAL" | "AUTO_PASSTHROUGH") {
        let message = format!("mode {mode} is not supported in a Sidecar");
        findings.push(Finding::new(BAD_TLS, at("mode"), message));
    }
    if syntax::protocol(protocol) != Some(Protocol::Tls) {
        let message = "the port's protocol is neither HTTPS nor TLS";
        findings.push(Finding::new(BAD_TLS, path, message));
    }
    ciphers(tls, path, findings);

    let needed: &[&str] = match mode {
        "SIMPLE" => &["serverCertificate", "privateKey"],
        "MUTUAL" | "OPTIONAL_MUTUAL" => &["serverCertificate", "privateKey", "caCertificates"],
        _ => &[],
    };
    if !CREDENTIALS.into_iter().any(set) {
        for name in needed.iter().filter(|name| !set(name)) {
            let message = format!("mode {mode} needs `{name}`");
            findings.push(Finding::new(BAD_TLS, at(name), message));
        }
    }
    if matches!(mode, "" | "PASSTHROUGH" | "AUTO_PASSTHROUGH") {
        for name in FILES.into_iter().filter(|name| set(name)) {
            let message = format!("mode PASSTHROUGH does not use `{name}`");
            findings.push(Finding::new(TLS_WARNING, at(name), message));
        }
    }
    if mode == "SIMPLE" && set("caCrl") {
        let message = "mode SIMPLE does not check clients, so it takes no `caCrl`";
        findings.push(Finding::new(BAD_TLS, at("caCrl"), message));
    }
}

fn ciphers(tls: &Node, path: &str, findings: &mut Vec<Finding>) {
    let path = join(path, "cipherSuites");
    let mut seen = BTreeSet::new();
    for (i, suite) in tls.texts("cipherSuites").enumerate() {
        // `ALL`, and the operators `-`, `+`, ... are the proxy's to understand.
        let known = matches!(suite, "" | "ALL")
            || !suite.starts_with(char::is_alphanumeric)
            || CIPHER_SUITES.contains(&suite);
        let message = match (known, seen.insert(suite)) {
            (false, _) => format!("`{suite}` is not a known cipher suite"),
            (true, false) => format!("`{suite}` is listed twice"),
            (true, true) => continue,
        };
        findings.push(Finding::new(TLS_WARNING, format!("{path}[{i}]"), message));
    }
    let oldest = tls.text("minProtocolVersion");
    if matches!(oldest, "TLSV1_0" | "TLSV1_1") && seen.is_empty() {
        let message = format!("{oldest} has no cipher suite among the default ones");
        findings.push(Finding::new(TLS_WARNING, path, message).remedy("list cipherSuites"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tree::{Source, parse};

    #[test]
    fn rules() {
        let simple = "mode: SIMPLE, serverCertificate: /c, privateKey: /k";
        let suite = CIPHER_SUITES[0];
        for (tls, protocol, expected) in [
            ("", "HTTPS", &[][..]),
            (simple, "tls", &[]),
            (simple, "HTTP", &["SCA0119 t"]),
            (simple, "", &["SCA0119 t"]),
            (&format!("{simple}, caCrl: /l"), "TLS", &["SCA0119 t.caCrl"]),
            (
                &format!("{simple}, httpsRedirect: true"),
                "TLS",
                &["SCA0119 t.httpsRedirect"],
            ),
            (
                &format!("{simple}, subjectAltNames: [a]"),
                "TLS",
                &["SCA0119 t.subjectAltNames"],
            ),
            (
                "mode: SIMPLE",
                "TLS",
                &["SCA0119 t.serverCertificate", "SCA0119 t.privateKey"],
            ),
            (
                "mode: OPTIONAL_MUTUAL, serverCertificate: /c, privateKey: /k",
                "TLS",
                &["SCA0119 t.caCertificates"],
            ),
            (
                "mode: SIMPLE, credentialName: a",
                "TLS",
                &["SCA0119 t.credentialName"],
            ),
            ("mode: AUTO_PASSTHROUGH", "TLS", &["SCA0119 t.mode"]),
            ("privateKey: /k", "TLS", &["SCA0120 t.privateKey"]),
            (
                &format!("{simple}, cipherSuites: [{suite}, {suite}, NULL-MD5, ALL, -x]"),
                "TLS",
                &["SCA0120 t.cipherSuites[1]", "SCA0120 t.cipherSuites[2]"],
            ),
            (
                &format!("{simple}, minProtocolVersion: TLSV1_2"),
                "TLS",
                &[],
            ),
            (
                &format!("{simple}, minProtocolVersion: TLSV1_1"),
                "TLS",
                &["SCA0120 t.cipherSuites"],
            ),
            (
                &format!("{simple}, minProtocolVersion: TLSV1_1, cipherSuites: [{suite}]"),
                "TLS",
                &[],
            ),
        ] {
            let (nodes, _) = parse(&Source::new("t", format!("{{{tls}}}")));
            let mut findings = Vec::new();
            check(&nodes[0], protocol, "t", &mut findings);
            let found: Vec<_> = findings
                .iter()
                .map(|found| format!("{} {}", found.code, found.field))
                .collect();
            assert_eq!(found, expected, "{tls}");
        }
    }
}
