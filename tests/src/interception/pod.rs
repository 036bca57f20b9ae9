//! The network of `tests/cases/iptables-cases.yaml`: a pod, what is outside it, and a guest.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Context as _;
use ipnet::IpNet;

use crate::{Cgroup, Namespace, Place, net::wait_reachable};

/// The pod's address on `eth0`.
pub const POD_V4: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
/// The same by IPv6.
pub const POD_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 5);
/// Its address on `net1`.
pub const POD_NET1: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 5);
/// Its address on `lo` that inbound passthrough connections come from; IPv4 has all of 127.0.0.0/8.
pub const PASSTHROUGH_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);
/// The other end of `eth0`.
pub const OUTSIDE_V4: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 1);
/// The same by IPv6.
pub const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 1);
/// The other end of `net1`.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 1);

/// What is outside, beside [`OUTSIDE_V4`] and [`OUTSIDE_V6`].
const OUTSIDE: [&str; 6] = [
    "10.96.0.0/12",
    "172.16.0.0/12",
    "93.184.216.0/24",
    "8.8.8.8/32",
    "169.254.0.0/16",
    "fd00:96::/32",
];

/// A pod with two interfaces, alone on each with what is at the other end.
#[derive(Debug)]
pub struct Pod {
    /// The cgroup of all processes of the pod.
    pub cgroup: Cgroup,
    /// The pod's namespace: `eth0`, the default route, and `net1`.
    pub netns: Namespace,
    /// The other end of `eth0`: everything that is outside the pod.
    pub outside: Namespace,
    /// The other end of `net1`: a virtual machine that the pod serves as a router, or another
    /// network. Not the same namespace as outside: it calls addresses that are outside's own.
    pub guest: Namespace,
}

impl Pod {
    /// Makes it and waits until both ends of each interface reach each other.
    ///
    /// # Errors
    /// When `ip` fails, mostly for want of root.
    pub fn new() -> anyhow::Result<Self> {
        let pod = Self {
            cgroup: Cgroup::new("pod")?,
            netns: Namespace::new("pod")?,
            outside: Namespace::new("outside")?,
            guest: Namespace::new("guest")?,
        };
        for netns in [&pod.netns, &pod.outside, &pod.guest] {
            // Whoever calls from an address that is not routed back the same way is heard.
            for scope in ["all", "default"] {
                netns.sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0")?;
            }
        }
        // For what the guest sends through it.
        pod.netns.sysctl("net/ipv4/ip_forward", "1")?;
        pod.netns.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        pod.netns
            .add_address("lo", IpNet::from(IpAddr::from(PASSTHROUGH_V6)))?;
        pod.link("eth0", &pod.outside)?;
        pod.link("net1", &pod.guest)?;
        for (netns, interface, ip, length) in [
            (&pod.netns, "eth0", IpAddr::from(POD_V4), 24),
            (&pod.netns, "eth0", POD_V6.into(), 64),
            (&pod.netns, "net1", POD_NET1.into(), 24),
            (&pod.outside, "eth0", OUTSIDE_V4.into(), 24),
            (&pod.outside, "eth0", OUTSIDE_V6.into(), 64),
            (&pod.guest, "net1", GUEST.into(), 24),
        ] {
            netns.add_address(interface, IpNet::new(ip, length)?)?;
        }
        pod.netns.add_route(&format!("default via {OUTSIDE_V4}"))?;
        pod.netns.add_route(&format!("default via {OUTSIDE_V6}"))?;
        pod.outside
            .add_route(&format!("192.168.50.0/24 via {POD_V4}"))?;
        pod.guest.add_route(&format!("default via {POD_NET1}"))?;
        // IPv6 does not count addresses of a local route as local to bind to; IPv4 does.
        pod.outside.sysctl("net/ipv6/ip_nonlocal_bind", "1")?;
        for net in OUTSIDE {
            pod.outside.add_local(net.parse()?)?;
        }
        for to in [OUTSIDE_V4.into(), OUTSIDE_V6.into(), IpAddr::from(GUEST)] {
            wait_reachable(&pod.netns, to).context("the pod does not reach its neighbour")?;
        }
        Ok(pod)
    }

    /// Where the pod's processes are.
    #[must_use]
    pub fn inside(&self) -> Place<'_> {
        Place::here().netns(&self.netns).cgroup(&self.cgroup)
    }

    /// Connects the pod with a namespace, by an interface of the same name on both sides.
    fn link(&self, interface: &str, other: &Namespace) -> anyhow::Result<()> {
        let other_name = other.name();
        self.netns.ip(&format!(
            "link add {interface} type veth peer name {interface} netns {other_name}"
        ))?;
        for netns in [&self.netns, other] {
            netns.ip(&format!("link set {interface} up"))?;
        }
        Ok(())
    }
}
