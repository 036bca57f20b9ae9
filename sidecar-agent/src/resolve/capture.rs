//! Real listener or captured, and at which address. Istio: `listener.go`, `listener_inbound.go`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::model::{
    mesh::{InterceptionMode, MeshConfig},
    sidecar::CaptureMode,
};

use super::protocol::Protocol;

/// Prefix of bind addresses and endpoints that are unix sockets.
pub const UNIX_PREFIX: &str = "unix://";

/// Ports of the proxy's health and metrics listeners, which no listener on the wildcard address
/// may take.
pub const STATUS_PORTS: [u16; 2] = [15021, 15090];

/// Reads an interception mode; `None`: not one.
#[must_use]
pub fn interception_mode(text: &str) -> Option<InterceptionMode> {
    match text {
        "REDIRECT" => Some(InterceptionMode::Redirect),
        "TPROXY" => Some(InterceptionMode::Tproxy),
        "NONE" => Some(InterceptionMode::None),
        _ => None,
    }
}

/// Whether anything is captured: Istio has virtual listeners in every mode but NONE.
#[must_use]
pub fn captures(mode: InterceptionMode) -> bool {
    mode != InterceptionMode::None
}

/// Whether an ingress listener is a real one. IPTABLES in a workload that captures nothing is
/// neither: it cannot be reached.
#[must_use]
pub fn ingress_is_real(mode: InterceptionMode, capture: CaptureMode) -> bool {
    match capture {
        CaptureMode::Default => !captures(mode),
        CaptureMode::Iptables => false,
        CaptureMode::None => true,
    }
}

/// Whether an egress listener is a real one. IPTABLES does not help where nothing is captured.
#[must_use]
pub fn egress_is_real(mode: InterceptionMode, capture: CaptureMode, bind: &str) -> bool {
    !captures(mode) || capture == CaptureMode::None || bind.starts_with(UNIX_PREFIX)
}

/// The address families of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Families {
    /// It has IPv4 addresses.
    pub v4: bool,
    /// It has IPv6 addresses.
    pub v6: bool,
}

impl Families {
    /// The families of these addresses; of none: IPv4, as in Istio.
    #[must_use]
    pub fn of(addresses: &[IpAddr]) -> Self {
        let v6 = addresses.iter().any(IpAddr::is_ipv6);
        Self {
            v4: !v6 || addresses.iter().any(IpAddr::is_ipv4),
            v6,
        }
    }

    /// One address for each family.
    fn each(self, v4: Ipv4Addr, v6: Ipv6Addr) -> Vec<IpAddr> {
        let v4 = self.v4.then_some(IpAddr::V4(v4));
        v4.into_iter()
            .chain(self.v6.then_some(IpAddr::V6(v6)))
            .collect()
    }

    /// `127.0.0.1`, `::1`, or both.
    #[must_use]
    pub fn loopbacks(self) -> Vec<IpAddr> {
        self.each(Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST)
    }

    /// `0.0.0.0`, `::`, or both.
    #[must_use]
    pub fn wildcards(self) -> Vec<IpAddr> {
        self.each(Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED)
    }
}

/// Where a real ingress listener is bound: as it says; else the workload's first global unicast
/// address; else the wildcard.
#[must_use]
pub fn ingress_binds(bind: Option<IpAddr>, addresses: &[IpAddr]) -> Vec<IpAddr> {
    match bind.or_else(|| addresses.iter().copied().find(is_global_unicast)) {
        Some(ip) => vec![ip],
        None => Families::of(addresses).wildcards(),
    }
}

/// Go's `IsGlobalUnicast`: private addresses count.
fn is_global_unicast(ip: &IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(link_local || ip.is_unspecified() || ip.is_loopback() || ip.is_multicast())
}

/// Whether a proxy may listen there: without privileges not below 1024. Nothing is bound for
/// what is captured.
#[must_use]
pub const fn may_bind(unprivileged: bool, real: bool, port: u16) -> bool {
    !(unprivileged && real && port < 1024)
}

/// Whether an egress listener would sit on the wildcard address at a port the proxy itself uses.
/// `bind` is what the listener will be bound to, `None` where that depends on the service.
#[must_use]
pub fn is_reserved(mesh: &MeshConfig, bind: Option<IpAddr>, port: u16, protocol: Protocol) -> bool {
    let on_wildcard = bind.map_or(protocol.is_http(), |ip| ip.is_unspecified());
    on_wildcard
        && (STATUS_PORTS.contains(&port)
            || port == mesh.proxy_listen_port
            || port == mesh.proxy_inbound_listen_port)
}

/// Whether an ingress listener would sit on the wildcard address at one of the proxy's status
/// ports.
#[must_use]
pub fn ingress_is_reserved(bind: Option<IpAddr>, port: u16, protocol: Protocol) -> bool {
    bind.map_or(protocol.is_http(), |ip| ip.is_unspecified()) && STATUS_PORTS.contains(&port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_those_of_the_addresses() {
        let (v4, v6) = (IpAddr::from([10, 0, 0, 1]), IpAddr::V6(Ipv6Addr::LOCALHOST));
        assert_eq!(
            Families::of(&[]),
            Families {
                v4: true,
                v6: false
            }
        );
        assert_eq!(
            Families::of(&[v6]),
            Families {
                v4: false,
                v6: true
            }
        );
        assert_eq!(Families::of(&[v6, v4]), Families { v4: true, v6: true });
    }

    /// `reference/capture-tables.yaml`, `reservedPorts`.
    #[test]
    fn reserved_ports() {
        let reserved = |bind: Option<&str>, port, protocol| {
            let bind = bind.map(|text| text.parse().unwrap());
            is_reserved(
                &MeshConfig::default(),
                bind,
                port,
                Protocol::parse(protocol),
            )
        };
        assert!(reserved(None, 15021, "HTTP"));
        assert!(!reserved(None, 15090, "TCP"));
        assert!(!reserved(None, 8080, "HTTP"));
        assert!(reserved(None, 15001, "HTTP"));
        assert!(!reserved(None, 15006, "TCP"));
        assert!(reserved(None, 15021, "GRPC"));
        assert!(reserved(Some("0.0.0.0"), 15006, "TCP"));
        assert!(!reserved(Some("127.0.0.1"), 15021, "HTTP"));
    }
}
