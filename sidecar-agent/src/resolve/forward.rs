//! Where an ingress listener's `defaultEndpoint` leads.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::compile::plan::{Target, UnixAddr};

use super::capture::Families;

/// Where the connections of an ingress listener go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Where they lead.
    pub target: Target,
    /// The source address with which Istio's proxy dials it, so that its own call is not
    /// captured again. The agent needs none: it dials nothing that it would capture.
    pub source: Option<IpAddr>,
}

/// Istio's source address of such calls over IPv4, and over IPv6.
const PASSTHROUGH_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6));
const PASSTHROUGH_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6));

/// Reads a `defaultEndpoint` of a workload with these addresses; `None`: it is malformed.
///
/// | written | leads to |
/// |---|---|
/// | nothing, `:PORT` | the connection's own destination |
/// | `127.0.0.1:PORT`, `[::1]:PORT` | loopback; of the other family if the workload lacks this one |
/// | `0.0.0.0:PORT`, `[::]:PORT` | the first address of that family, else its loopback |
/// | `unix://...` | that socket |
#[must_use]
pub fn forward(default_endpoint: &str, addresses: &[IpAddr]) -> Option<Forward> {
    let families = Families::of(addresses);
    if default_endpoint.is_empty() {
        return Some(original(families));
    }
    if let Some(unix) = UnixAddr::parse(default_endpoint) {
        return Some(Forward {
            target: Target::Unix(unix),
            source: None,
        });
    }
    let (host, port) = default_endpoint.rsplit_once(':')?;
    let host = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .unwrap_or(host);
    if host.is_empty() {
        return Some(original(families));
    }
    let port: u16 = port.parse().ok().filter(|port| *port != 0)?;
    let ip: IpAddr = match host.parse().ok()? {
        IpAddr::V4(Ipv4Addr::LOCALHOST) if families.v4 => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V4(Ipv4Addr::LOCALHOST) => Ipv6Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::LOCALHOST) if families.v6 => Ipv6Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::LOCALHOST) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => {
            first(addresses, IpAddr::is_ipv4).unwrap_or(Ipv4Addr::LOCALHOST.into())
        }
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => {
            first(addresses, IpAddr::is_ipv6).unwrap_or(Ipv6Addr::LOCALHOST.into())
        }
        _ => return None,
    };
    let source = match ip {
        _ if ip.is_loopback() => None,
        IpAddr::V4(_) => Some(PASSTHROUGH_V4),
        IpAddr::V6(_) => Some(PASSTHROUGH_V6),
    };
    Some(Forward {
        target: Target::Tcp(SocketAddr::new(ip, port)),
        source,
    })
}

/// The connection's own destination.
fn original(families: Families) -> Forward {
    let source = if families.v4 {
        PASSTHROUGH_V4
    } else {
        PASSTHROUGH_V6
    };
    Forward {
        target: Target::Original,
        source: Some(source),
    }
}

fn first(addresses: &[IpAddr], family: fn(&IpAddr) -> bool) -> Option<IpAddr> {
    addresses.iter().copied().find(family)
}
