//! No connection is tracked because of us.

use anyhow::ensure;
use sidecar_tests::{
    Mode, Namespace, Place, command::output, envoy::Bootstrap, require_envoy, skip,
};

use crate::fixture::{app, at, pod, serve_app, serve_outside, service, started, visit};

/// Turns tracking on in a namespace, as any rule of NAT does: istio-iptables' own, with another
/// port, so that it is not in the way of what it is compared with.
const RULE: &str = "-t nat -A OUTPUT -p tcp --dport 9999 -j REDIRECT --to-ports 15001";

fn turn_on(netns: &Namespace) -> anyhow::Result<()> {
    for program in ["iptables", "ip6tables"] {
        let mut command = Place::here().netns(netns).command(program);
        output(command.args(RULE.split(' ')))?;
    }
    Ok(())
}

/// How many connections the kernel tracks in a namespace, and which.
fn tracked(netns: &Namespace) -> anyhow::Result<(u64, String)> {
    let conntrack =
        |args: &[&str]| output(Place::here().netns(netns).command("conntrack").args(args));
    let count = conntrack(&["-C"])?.trim().parse()?;
    let mut entries = String::new();
    for family in ["ipv4", "ipv6"] {
        entries += &conntrack(&["-L", "-f", family])?;
    }
    Ok((count, entries))
}

#[test]
fn no_connection_is_tracked() -> anyhow::Result<()> {
    require_envoy!();
    let other = Namespace::new("iptables")?;
    if let Err(error) = turn_on(&other) {
        skip!("iptables with NAT: {error:#}");
    }
    let (mut lab, envoy) = started(Bootstrap::default())?;
    serve_outside(&mut lab, 9080, Mode::Banner)?;
    serve_app(&mut lab, 8080, Mode::Banner)?;
    let each_way = || -> anyhow::Result<()> {
        for destination in service(9080) {
            visit(app(&lab), destination)?;
        }
        for destination in at(pod(&lab), 8080) {
            visit(lab.outside(), destination)?;
        }
        Ok(())
    };
    each_way()?;
    each_way()?;
    assert_eq!(envoy.settled()?.all_taken(), 8);
    let netns = &lab.workload().netns;
    let (count, entries) = tracked(netns)?;
    ensure!(count == 0 && entries.is_empty(), "{count}:\n{entries}");

    // The same with a rule in the namespace: tracked connections would have been seen, to Envoy
    // and from it.
    turn_on(netns)?;
    each_way()?;
    let (count, entries) = tracked(netns)?;
    ensure!(count >= 8, "{count}:\n{entries}");
    for port in ["dport=15001", "dport=9080", "dport=8080"] {
        ensure!(entries.contains(port), "no {port} in {count}:\n{entries}");
    }
    Ok(())
}
