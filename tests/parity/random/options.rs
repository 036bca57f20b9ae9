//! Option sets.

use std::fmt::Display;

use fastrand::Rng;
use sidecar_agent::conformance::iptables::cases::OptionSet;

use super::{PORTS, one, percent};

const RANGES: [&str; 14] = [
    "10.96.0.0/12",
    "10.96.5.0/24",
    "93.184.216.34/32",
    "172.16.5.0/24",
    "10.244.1.0/24",
    "192.168.50.0/24",
    "127.1.2.3/32",
    "127.0.0.0/8",
    "0.0.0.0/0",
    "fd00:96::/32",
    "fd00:96:5::/48",
    "fd00:244::/64",
    "::1/128",
    "::/0",
];

/// A valid set of options, with all of them now and then.
pub fn options(rng: &mut Rng) -> OptionSet {
    let dual = rng.bool();
    let mut options = OptionSet {
        interception_mode: if percent(rng, 35) {
            "TPROXY"
        } else {
            "REDIRECT"
        }
        .to_owned(),
        proxy_uid: one(rng, &["1337", "1337", "2000", "1337,2000", "2000,1337"]).to_owned(),
        proxy_gid: one(rng, &["1337", "1337", "2001", "1337,2001", "2001,1337"]).to_owned(),
        drop_invalid: percent(rng, 10),
        enable_ipv6: dual,
        dual_stack: dual,
        ..OptionSet::default()
    };
    if percent(rng, 15) {
        "16001".clone_into(&mut options.proxy_port);
        "16006".clone_into(&mut options.inbound_capture_port);
        "16008".clone_into(&mut options.inbound_tunnel_port);
    }
    ports(rng, &mut options);
    ranges(rng, &mut options);
    interfaces(rng, &mut options);
    owner_groups(rng, &mut options);
    dns(rng, &mut options);
    options
}

fn ports(rng: &mut Rng, options: &mut OptionSet) {
    options.include_inbound_ports = match rng.u8(..10) {
        0 => String::new(),
        1..3 => list(rng, 3, &PORTS),
        _ => "*".to_owned(),
    };
    options.exclude_inbound_ports = if rng.bool() {
        "15090,15021,15020".to_owned()
    } else {
        list(rng, 3, &PORTS)
    };
    if percent(rng, 40) {
        options.include_outbound_ports = list(rng, 3, &PORTS);
    }
    if percent(rng, 40) {
        options.exclude_outbound_ports = list(rng, 3, &PORTS);
    }
}

fn ranges(rng: &mut Rng, options: &mut OptionSet) {
    options.include_outbound_ip_ranges = match rng.u8(..10) {
        0 => String::new(),
        1..5 => list(rng, 4, &RANGES),
        _ => "*".to_owned(),
    };
    if percent(rng, 40) {
        options.exclude_outbound_ip_ranges = list(rng, 3, &RANGES);
    }
    let loopback = [
        "127.0.0.1/32",
        "127.0.0.1/32",
        "127.0.0.1/8",
        "127.0.0.0/16",
    ];
    one(rng, &loopback).clone_into(&mut options.host_ipv4_loopback_cidr);
}

fn interfaces(rng: &mut Rng, options: &mut OptionSet) {
    if percent(rng, 20) {
        let interfaces = ["net1", "net+", "eth0", "net1,eth0"];
        one(rng, &interfaces).clone_into(&mut options.exclude_interfaces);
    }
    if percent(rng, 15) {
        one(rng, &["net1", "net+"]).clone_into(&mut options.reroute_virtual_interfaces);
    }
}

fn owner_groups(rng: &mut Rng, options: &mut OptionSet) {
    match rng.u8(..10) {
        0 => options.owner_groups_include = String::new(),
        1..3 => options.owner_groups_include = list(rng, 2, &[202, 203, 1000]),
        3..5 => options.owner_groups_exclude = list(rng, 2, &[202, 888, 1000]),
        _ => {}
    }
}

fn dns(rng: &mut Rng, options: &mut OptionSet) {
    options.redirect_dns = rng.bool();
    options.capture_all_dns = rng.bool();
    if rng.bool() {
        options.dns_servers_v4 = some(rng, 2, &["10.96.0.10", "127.0.0.53", "8.8.8.8"]);
    }
    if rng.bool() {
        options.dns_servers_v6 = some(rng, 1, &["fd00:96::10", "::1"]);
    }
}

/// Up to so many of them, perhaps one twice.
fn some(rng: &mut Rng, most: usize, items: &[impl Display + Clone]) -> Vec<String> {
    let count = rng.usize(1..=most);
    (0..count).map(|_| one(rng, items).to_string()).collect()
}

/// The same as a list in one text.
fn list(rng: &mut Rng, most: usize, items: &[impl Display + Clone]) -> String {
    some(rng, most, items).join(",")
}
