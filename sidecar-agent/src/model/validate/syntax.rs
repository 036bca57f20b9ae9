//! The small grammars of Istio's validation: names, addresses, endpoints.

use std::net::IpAddr;

/// Longest DNS label, and longest name or value of a Kubernetes label.
pub const MAX_LABEL: usize = 63;
/// Longest DNS name, as Istio checks it.
const MAX_DNS_NAME: usize = 255;
/// What addresses of unix sockets begin with.
pub const UNIX: &str = "unix://";

/// Whether this is a DNS label: 1..63 letters, digits and inner `-`; upper case is accepted.
#[must_use]
pub fn is_dns_label(text: &str) -> bool {
    text.len() <= MAX_LABEL
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
        && !text.is_empty()
}

/// Whether this is a Kubernetes object name: lower-case DNS labels separated by dots.
#[must_use]
pub fn is_object_name(text: &str) -> bool {
    text.len() <= 253
        && text.split('.').all(is_dns_label)
        && !text.bytes().any(|b| b.is_ascii_uppercase())
}

/// Checks a DNS name without wildcard. One trailing dot is accepted, short names are, IPv4
/// addresses are not.
///
/// # Errors
/// What is wrong with it.
pub fn fqdn(name: &str) -> Result<(), String> {
    length(name)?;
    labels(name)
}

/// Checks a DNS name whose first label may be `*`.
///
/// # Errors
/// What is wrong with it.
pub fn wildcard_domain(name: &str) -> Result<(), String> {
    length(name)?;
    let (first, rest) = name
        .split_once('.')
        .map_or((name, None), |(a, b)| (a, Some(b)));
    if first.contains('*') {
        if first != "*" {
            return Err("`*` must stand alone or be the whole first label".into());
        }
    } else if !is_dns_label(first) {
        return Err(format!("`{first}` is not a DNS label"));
    }
    rest.map_or(Ok(()), labels)
}

fn length(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("the DNS name is empty".into());
    }
    if name.len() > MAX_DNS_NAME {
        return Err(format!(
            "the DNS name is longer than {MAX_DNS_NAME} characters"
        ));
    }
    Ok(())
}

fn labels(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Ok(());
    }
    let absolute = name.strip_suffix('.').unwrap_or(name);
    for label in absolute.split('.') {
        if !is_dns_label(label) {
            return Err(format!("`{label}` is not a DNS label"));
        }
    }
    // A trailing dot makes the last label empty, which is not all digits.
    let last = name.rsplit('.').next().unwrap_or_default();
    if !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("the last label, `{last}`, is all digits"));
    }
    Ok(())
}

/// Reads an IP address: no brackets, no port, no prefix length; IPv6 may have a zone, which is
/// dropped.
#[must_use]
pub fn ip(text: &str) -> Option<IpAddr> {
    match text.split_once('%') {
        Some((address, zone)) if !zone.is_empty() => address.parse().ok().filter(IpAddr::is_ipv6),
        Some(_) => None,
        None => text.parse().ok(),
    }
}

/// Checks what follows `unix://`: `@` and anything, or an absolute path that is no directory.
///
/// # Errors
/// What is wrong with it.
pub fn unix_address(address: &str) -> Result<(), String> {
    if address.is_empty() {
        return Err("the unix socket has no address".into());
    }
    if address.starts_with('@') || (address.starts_with('/') && !address.ends_with('/')) {
        return Ok(());
    }
    Err(format!(
        "`{address}` is not an absolute path of a socket, nor does it begin with `@`"
    ))
}

/// Splits `host:port` as Go's `net.SplitHostPort` does.
///
/// # Errors
/// What is wrong with it.
pub fn host_port(text: &str) -> Result<(&str, &str), String> {
    let missing = || Err("the port is missing".to_owned());
    let colons = || Err("there are too many colons; IPv6 addresses go into brackets".to_owned());
    let (host, port) = if let Some(bracket) = text.strip_prefix('[') {
        let Some((host, rest)) = bracket.split_once(']') else {
            return Err("`]` is missing".into());
        };
        match rest.strip_prefix(':') {
            Some(port) if port.contains(':') => return colons(),
            Some(port) => (host, port),
            None => return missing(),
        }
    } else {
        match text.rsplit_once(':') {
            None => return missing(),
            Some((host, _)) if host.contains(':') => return colons(),
            Some(split) => split,
        }
    };
    if [host, port].iter().any(|part| part.contains(['[', ']'])) {
        return Err("brackets are misplaced".into());
    }
    Ok((host, port))
}

/// Whether a number is a port: 1..65535.
#[must_use]
pub fn is_port(number: i128) -> bool {
    (1..=65535).contains(&number)
}

/// Layer 7 families of protocols, as far as rules depend on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP, HTTP2, `HTTP_PROXY`, GRPC, GRPC-Web.
    Http,
    /// HTTPS, TLS.
    Tls,
    /// TCP, UDP, Mongo, Redis, `MySQL`.
    Other,
}

/// Reads a protocol in any case; `None` where Istio does not support it, or it is empty. HBONE is
/// not supported: Istio lower-cases before it compares.
#[must_use]
pub fn protocol(text: &str) -> Option<Protocol> {
    Some(match text.to_ascii_lowercase().as_str() {
        "http" | "http2" | "http_proxy" | "grpc" | "grpc-web" => Protocol::Http,
        "https" | "tls" => Protocol::Tls,
        "tcp" | "udp" | "mongo" | "redis" | "mysql" => Protocol::Other,
        _ => return None,
    })
}

/// Checks one label of a Kubernetes object.
///
/// # Errors
/// What is wrong with it.
pub fn label(key: &str, value: &str) -> Result<(), String> {
    let name = match key.split_once('/') {
        Some((prefix, name)) if is_object_name(prefix) => name,
        Some((prefix, _)) => return Err(format!("`{prefix}` is not a DNS name")),
        None => key,
    };
    if name.is_empty() || !is_label_text(name) {
        return Err(format!("`{key}` is not a label key"));
    }
    if is_label_text(value) {
        Ok(())
    } else {
        Err(format!("`{value}` is not a label value"))
    }
}

/// What label names and values have in common.
fn is_label_text(text: &str) -> bool {
    text.len() <= MAX_LABEL
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && !text.starts_with(['-', '_', '.'])
        && !text.ends_with(['-', '_', '.'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port_are_split_as_go_does() {
        for (text, expected) in [
            ("127.0.0.1:80", Some(("127.0.0.1", "80"))),
            (":80", Some(("", "80"))),
            ("[::1]:80", Some(("::1", "80"))),
            ("[::1]:", Some(("::1", ""))),
            ("[]:80", Some(("", "80"))),
            ("a:", Some(("a", ""))),
            ("", None),
            ("80", None),
            ("::1:80", None),
            ("[::1]", None),
            ("[::1]x:80", None),
            ("[::1]:80:80", None),
            ("[::1", None),
            ("a]:80", None),
            ("a:[80", None),
            ("[[::1]:80", None),
        ] {
            assert_eq!(host_port(text).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn names() {
        for (name, plain, wildcard) in [
            ("a.com", true, true),
            ("a.com.", true, true),
            ("a", true, true),
            ("*.a.com", false, true),
            ("*", false, true),
            ("*.", false, true),
            ("*a.com", false, false),
            ("a.*.com", false, false),
            ("1.2.3.4", false, false),
            ("1.2.3.4.", true, true),
            ("a..com", false, false),
            ("a..", false, false),
            (".com", false, false),
            ("", false, false),
            ("ü.com", false, false),
            ("a.com/b", false, false),
        ] {
            assert_eq!(fqdn(name).is_ok(), plain, "{name:?}");
            assert_eq!(
                wildcard_domain(name).is_ok(),
                wildcard,
                "{name:?} with wildcard"
            );
        }
        assert!(is_object_name("a.b-c") && !is_object_name("A") && !is_object_name("a..b"));
    }

    #[test]
    fn addresses() {
        for good in ["1.2.3.4", "::1", "::", "fe80::1%eth0", "::ffff:1.2.3.4"] {
            assert!(ip(good).is_some(), "{good}");
        }
        for bad in [
            "",
            "1.2.3",
            "01.2.3.4",
            "[::1]",
            "1.2.3.4%eth0",
            "fe80::1%",
            "10.0.0.0/8",
        ] {
            assert!(ip(bad).is_none(), "{bad}");
        }
        for (address, good) in [
            ("/a", true),
            ("@", true),
            ("@a/", true),
            ("", false),
            ("/", false),
            ("a", false),
        ] {
            assert_eq!(unix_address(address).is_ok(), good, "{address:?}");
        }
    }

    #[test]
    fn labels_of_objects() {
        for (key, value, good) in [
            ("app", "a", true),
            ("a.b/c_d", "", true),
            ("", "a", false),
            ("a/", "b", false),
            ("A.b/c", "d", false),
            ("a", "-b", false),
            ("a", "b c", false),
        ] {
            assert_eq!(label(key, value).is_ok(), good, "{key}={value}");
        }
    }
}
