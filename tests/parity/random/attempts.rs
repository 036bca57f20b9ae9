//! Attempts.

use std::net::IpAddr;

use fastrand::Rng;
use sidecar_agent::conformance::iptables::cases::OptionSet;
use sidecar_tests::{
    apps::visit::{Transport, User},
    interception::{
        Attempt, From, Interface,
        pod::{GUEST, POD_NET1, POD_V4, POD_V6},
    },
};

use super::{PORTS, one, percent};

/// Where applications call, by family.
const REMOTE: [&[&str]; 2] = [
    &[
        "10.96.0.20",
        "10.96.0.10",
        "10.96.5.20",
        "93.184.216.34",
        "172.16.5.9",
        "8.8.8.8",
        "10.244.1.1",
    ],
    &["fd00:96::20", "fd00:96::10", "fd00:96:5::1", "fd00:244::1"],
];

/// The pod's own addresses, and the sources that a connection to them can have.
const OWN: [&[&str]; 2] = [
    &[
        "127.0.0.1",
        "127.0.0.2",
        "127.0.0.6",
        "127.0.0.53",
        "127.1.2.3",
        "10.244.1.5",
        "192.168.50.5",
    ],
    &["::1", "::6", "fd00:244::5"],
];

/// The sources that mean something.
const SOURCES: [&[&str]; 2] = [
    &["127.0.0.6", "127.0.0.6", "127.0.0.1", "10.244.1.5"],
    &["::6", "::6", "::1", "fd00:244::5"],
];

/// A connection or datagram that means something under these options.
pub fn attempt(rng: &mut Rng, options: &OptionSet) -> Attempt {
    let transport = if percent(rng, 25) {
        one(rng, &[Transport::Udp, Transport::UdpUnconnected])
    } else {
        Transport::Tcp
    };
    let port = if transport != Transport::Tcp && percent(rng, 60) {
        53
    } else {
        one(rng, &PORTS)
    };
    let (from, source, ip) = if percent(rng, 65) {
        outbound(rng)
    } else {
        inbound(rng, options)
    };
    Attempt {
        from,
        transport,
        source,
        to: (ip, port).into(),
    }
}

fn outbound(rng: &mut Rng) -> (From, Option<IpAddr>, IpAddr) {
    let user = User {
        uid: one(rng, &[1000, 1000, 1000, 0, 1337, 1337, 2000]),
        gid: one(rng, &[1000, 1000, 1000, 0, 1337, 1337, 2001, 202, 203, 888]),
        groups: one(rng, &[vec![], vec![], vec![202], vec![1337, 888]]),
    };
    let family = usize::from(percent(rng, 30));
    let own = percent(rng, 35);
    let ip = if own {
        address(rng, OWN[family])
    } else if family == 0 && percent(rng, 10) {
        GUEST.into()
    } else {
        address(rng, REMOTE[family])
    };
    // Nobody answers to a loopback address from elsewhere: only calls to the pod itself are bound.
    let source = (own && percent(rng, 35)).then(|| address(rng, SOURCES[family]));
    (From::Inside(user), source, ip)
}

fn inbound(rng: &mut Rng, options: &OptionSet) -> (From, Option<IpAddr>, IpAddr) {
    if percent(rng, 30) {
        // The guest calls the pod, or what is outside by way of it: a pod is a router only where
        // it has a virtual interface.
        let routes = !options.reroute_virtual_interfaces.is_empty();
        let ip = match rng.u8(..4) {
            0 | 1 if routes => address(rng, REMOTE[0]),
            0 => POD_V4.into(),
            _ => POD_NET1.into(),
        };
        return (From::Through(Interface::Net1), None, ip);
    }
    let family = usize::from(percent(rng, 30));
    let ip = match (family, rng.u8(..5)) {
        (1, _) => POD_V6.into(),
        (_, 0) => POD_NET1.into(),
        _ => POD_V4.into(),
    };
    let source = rng.bool().then(|| address(rng, &REMOTE[family][..3]));
    (From::Through(Interface::Eth0), source, ip)
}

fn address(rng: &mut Rng, of: &[&str]) -> IpAddr {
    one(rng, of).parse().expect("an address")
}
