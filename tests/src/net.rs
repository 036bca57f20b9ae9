//! Hosts that reach each other.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{
    Namespace,
    poll::{DEADLINE, poll_result},
};

/// The network all hosts are in; each [`Net`] has its own. Private and documentation ranges would
/// do as well, but some of those mean something to what is tested.
const V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 77, 0, 0), 16);
const V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0), 64);

/// The last number in the address of the router; hosts count from 1.
const ROUTER: u8 = 254;

/// A port on the router that nobody listens on.
const CLOSED_PORT: u16 = 9;

/// A namespace with an interface `eth0`, reached by the other hosts at its two addresses.
#[derive(Debug)]
pub struct Host {
    /// The namespace.
    pub netns: Namespace,
    /// Its IPv4 address, `10.77.0.N`.
    pub v4: Ipv4Addr,
    /// Its IPv6 address, `fd77::N`.
    pub v6: Ipv6Addr,
}

/// Hosts on one bridge. The bridge is in a namespace of its own, the router, which is every host's
/// default gateway and leads nowhere else.
#[derive(Debug)]
pub struct Net {
    router: Namespace,
    hosts: Vec<Host>,
}

impl Net {
    /// Makes one host for each label, and waits until all reach the router. The hosts are
    /// numbered from 1 in this order, which decides their addresses.
    ///
    /// # Errors
    /// When `ip` fails, mostly for want of root, or there are more than 253 hosts.
    pub fn new(labels: &[&str]) -> anyhow::Result<Self> {
        let router = Namespace::new("router")?;
        for forwarding in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            router.sysctl(forwarding, "1")?;
        }
        // Hosts are to send through the router what is announced there, not to learn a way round.
        router.sysctl("net/ipv4/conf/all/send_redirects", "0")?;
        router.sysctl("net/ipv4/conf/default/send_redirects", "0")?;
        // No multicast snooping: neighbour discovery is to work from the first packet.
        // An address of its own: a bridge without one takes that of a port, and changes it when
        // another port comes, while hosts still send to the old one.
        router.ip("link add br0 address 02:00:00:00:00:fe type bridge mcast_snooping 0")?;
        let (v4, v6) = addresses(ROUTER);
        router.add_address("br0", IpNet::new(v4.into(), V4.prefix_len())?)?;
        router.add_address("br0", IpNet::new(v6.into(), V6.prefix_len())?)?;
        router.ip("link set br0 up")?;

        let mut net = Self {
            router,
            hosts: Vec::new(),
        };
        for label in labels {
            net.add_host(label)?;
        }
        Ok(net)
    }

    /// Adds a host to those there are and waits until it reaches the router.
    ///
    /// # Errors
    /// As [`Net::new`].
    pub fn add_host(&mut self, label: &str) -> anyhow::Result<&Host> {
        let number = u8::try_from(self.hosts.len() + 1).unwrap_or(u8::MAX);
        ensure!(number < ROUTER, "a Net has room for {} hosts", ROUTER - 1);
        let (v4, v6) = addresses(number);
        let netns = Namespace::new(label)?;
        let port = format!("port{number}");
        self.router.ip(&format!(
            "link add {port} type veth peer name eth0 netns {}",
            netns.name()
        ))?;
        self.router.ip(&format!("link set {port} master br0 up"))?;
        netns.add_address("eth0", IpNet::new(v4.into(), V4.prefix_len())?)?;
        netns.add_address("eth0", IpNet::new(v6.into(), V6.prefix_len())?)?;
        netns.ip("link set eth0 up")?;
        let (gateway4, gateway6) = addresses(ROUTER);
        netns.add_route(&format!("default via {gateway4}"))?;
        netns.add_route(&format!("default via {gateway6}"))?;
        for gateway in [IpAddr::from(gateway4), IpAddr::from(gateway6)] {
            wait_reachable(&netns, gateway)
                .with_context(|| format!("host {label} does not reach its router"))?;
        }
        self.hosts.push(Host { netns, v4, v6 });
        Ok(&self.hosts[self.hosts.len() - 1])
    }

    /// The hosts, in the order of their labels.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The namespace of the bridge, for packet filters and failures on the way.
    #[must_use]
    pub fn router(&self) -> &Namespace {
        &self.router
    }

    /// Makes every address of `net` one of this host's, reached from all others.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn announce(&self, host: &Host, net: IpNet) -> anyhow::Result<()> {
        host.netns.add_local(net)?;
        let via = if net.addr().is_ipv4() {
            IpAddr::from(host.v4)
        } else {
            IpAddr::from(host.v6)
        };
        self.router.add_route(&format!("{net} via {via}"))
    }
}

fn addresses(number: u8) -> (Ipv4Addr, Ipv6Addr) {
    let v4 = Ipv4Addr::from_bits(V4.addr().to_bits() | u32::from(number));
    let v6 = Ipv6Addr::from_bits(V6.addr().to_bits() | u128::from(number));
    (v4, v6)
}

/// Waits until a neighbour refuses a connection: then both directions work.
pub(crate) fn wait_reachable(from: &Namespace, to: IpAddr) -> anyhow::Result<()> {
    let address = SocketAddr::new(to, CLOSED_PORT);
    from.run(|| {
        poll_result(
            DEADLINE,
            &format!("{to} to answer"),
            || match TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
                Err(error) => Err(error.into()),
                Ok(_) => anyhow::bail!("something listens on port {CLOSED_PORT}"),
            },
        )
    })?
}
