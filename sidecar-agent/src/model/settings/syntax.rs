//! The syntax of settings' values.

use std::net::IpAddr;

use ipnet::Ipv4Net;

/// The elements of a list; empty ones are skipped.
pub fn elements(text: &str) -> impl Iterator<Item = &str> {
    text.split(',')
        .map(str::trim)
        .filter(|text| !text.is_empty())
}

/// A boolean as Go's `strconv.ParseBool` reads it.
#[must_use]
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// A port; 0 is one.
#[must_use]
pub fn port(text: &str) -> Option<u16> {
    unsigned(text)?.parse().ok()
}

/// A user's or group's number; the largest is none, but means "nobody".
#[must_use]
pub fn id(text: &str) -> Option<u32> {
    unsigned(text)?.parse().ok().filter(|id| *id != u32::MAX)
}

/// Rust reads `+1` as a number, Go does not.
fn unsigned(text: &str) -> Option<&str> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then_some(text)
}

/// What counts as loopback: an IPv4 network.
#[must_use]
pub fn loopback_cidr(text: &str) -> Option<Ipv4Net> {
    text.parse().ok().map(|net: Ipv4Net| net.trunc())
}

/// The address of a name server.
#[must_use]
pub fn server(text: &str) -> Option<IpAddr> {
    text.parse().ok().map(|ip: IpAddr| ip.to_canonical())
}

/// The name of a network interface; with a `+` at the end, of all whose names begin so.
#[must_use]
pub fn interface(text: &str) -> Option<String> {
    /// `IFNAMSIZ`, without the final zero.
    const LONGEST: usize = 15;
    let odd = |byte: u8| byte.is_ascii_whitespace() || byte.is_ascii_control() || byte == b'/';
    let possible = (1..=LONGEST).contains(&text.len())
        && !text.bytes().any(odd)
        && !matches!(text, "." | "..");
    possible.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syntax() {
        for (text, expected) in [
            ("1", Some(true)),
            ("T", Some(true)),
            ("False", Some(false)),
            ("0", Some(false)),
            ("yes", None),
            ("tRUE", None),
            ("", None),
        ] {
            assert_eq!(boolean(text), expected, "{text:?}");
        }
        for (text, expected) in [
            ("0", Some(0)),
            ("65535", Some(65535)),
            ("65536", None),
            ("+1", None),
            ("-1", None),
            ("80-90", None),
            ("", None),
        ] {
            assert_eq!(port(text), expected, "{text:?}");
        }
        assert_eq!(id("4294967294"), Some(u32::MAX - 1));
        assert_eq!(id("4294967295"), None);
        assert_eq!(loopback_cidr("127.0.0.1/8"), "127.0.0.0/8".parse().ok());
        assert_eq!(loopback_cidr("::1/128"), None);
        for (text, possible) in [
            ("eth0", true),
            ("eth+", true),
            ("a/b", false),
            ("a b", false),
            ("..", false),
            ("0123456789abcdef", false),
        ] {
            assert_eq!(interface(text).is_some(), possible, "{text:?}");
        }
    }
}
