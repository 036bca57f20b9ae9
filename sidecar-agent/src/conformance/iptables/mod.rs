//! `iptables-cases.yaml`: what is captured under the options of `istio-iptables`.

pub mod cases;
pub mod deviations;
mod options;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use serde::Deserialize;
use serde_json::{Map, Value};
use sidecar_common::{
    Endpoint, Path,
    decide::{self, Caller, Decision, InboundCall, OutboundCall, Transport},
};

use crate::{
    compile::{MemTables, Network, NetworkInterface, WorkloadPlan},
    model::mesh::InterceptionMode,
};

use super::{CaseResult, Malformed, expect, failed};
use cases::{Case, Direction, OptionSet, Protocol};

pub use options::{problems, workload};

/// Runs the file.
///
/// # Errors
/// When the text is no such file.
pub fn run(text: &str) -> Result<Vec<CaseResult>, Malformed> {
    let file: Map<String, Value> = super::read(text)?;
    let mut results = Vec::new();
    let mut sets = BTreeMap::new();
    for (section, value) in &file {
        match (section.as_str(), value) {
            ("optionSets", Value::Object(written)) => {
                for (name, set) in written {
                    match option_set(set) {
                        Ok(set) => _ = sets.insert(name.as_str(), set),
                        Err(why) => results.push(failed(&format!("optionSets.{name}"), why)),
                    }
                }
            }
            ("cases", _) => {}
            _ => results.push(failed(section, "the section is not understood")),
        }
    }
    let check = |case: &Case| {
        let set = sets.get(case.options.as_str());
        let set = set.ok_or_else(|| format!("there is no option set {:?}", case.options))?;
        check(case, &workload(set))
    };
    if let Some(cases) = file.get("cases") {
        results.extend(super::run("cases", cases, check));
    }
    Ok(results)
}

fn option_set(written: &Value) -> Result<OptionSet, String> {
    let set = OptionSet::deserialize(written)
        .map_err(|error| format!("the option set is not understood: {error}"))?;
    match &problems(&set)[..] {
        [] => Ok(set),
        problems => Err(problems.join("; ")),
    }
}

/// The interfaces of the pod in which the cases were measured.
#[must_use]
pub fn topology() -> Network {
    let nets = |texts: &[&str]| texts.iter().filter_map(|net| net.parse().ok()).collect();
    Network(vec![
        NetworkInterface {
            index: 2,
            name: "eth0".into(),
            addresses: nets(&["10.244.1.5/24", "fd00:244::5/64"]),
            routes: nets(&["0.0.0.0/0", "::/0"]),
        },
        NetworkInterface {
            index: 3,
            name: "net1".into(),
            addresses: nets(&["192.168.50.5/24"]),
            routes: Vec::new(),
        },
    ])
}

/// The peer at the other end of an interface of [`topology`], by the family of `like`.
#[must_use]
pub fn peer(interface: &str, like: IpAddr) -> IpAddr {
    match (interface, like) {
        ("net1", IpAddr::V4(_)) => [192, 168, 50, 1].into(),
        (_, IpAddr::V4(_)) => [10, 244, 1, 1].into(),
        (_, IpAddr::V6(_)) => [0xfd00, 0x244, 0, 0, 0, 0, 0, 1].into(),
    }
}

/// What becomes of a connection.
#[derive(Debug)]
struct Outcome {
    captured: bool,
    to_port: Option<u16>,
    original_dst: Option<SocketAddr>,
    local_addr_seen: Option<SocketAddr>,
    peer_addr_seen: Option<IpAddr>,
}

fn check(case: &Case, planned: &WorkloadPlan) -> Result<(), String> {
    let got = match case.direction {
        Direction::Outbound => outbound(case, planned)?,
        Direction::Inbound => inbound(case, planned)?,
    };
    expect("captured", &case.captured, &got.captured)?;
    expect("toPort", &case.to_port, &got.to_port)?;
    expect("originalDst", &case.original_dst, &got.original_dst)?;
    expect("peerAddrSeen", &case.peer_addr_seen, &got.peer_addr_seen)?;
    // A redirected connection's local address is the listener's. Here an inbound one keeps its
    // own, and an outbound one may have any loopback address.
    if planned.workload.mode() == InterceptionMode::Tproxy {
        expect("localAddrSeen", &case.local_addr_seen, &got.local_addr_seen)?;
    }
    Ok(())
}

fn outbound(case: &Case, planned: &WorkloadPlan) -> Result<Outcome, String> {
    let network = topology();
    let dst = SocketAddr::new(case.dst, case.dport);
    let src = case.src.or_else(|| network.source(case.dst));
    let src = src.ok_or("no source address leads there")?;
    let header = &planned.plan.header;
    let tables = tables(planned, network);
    let transport = match case.protocol {
        Protocol::Tcp => Transport::Tcp,
        Protocol::Udp if decide::concerns_datagrams(header, case.dport) => Transport::Udp,
        Protocol::Udp => return Ok(Outcome::passed()),
    };
    let unbound = Endpoint::from(dst).addr.wildcard();
    let call = OutboundCall {
        dst: dst.into(),
        src: case.src.map_or(unbound, Into::into),
        transport,
        caller: Caller {
            uid: case.uid,
            gid: case.gid,
            in_proxy_cgroup: false,
        },
        bound_device: false,
    };
    let decision = decide::outbound(&tables, 0, header, &call);
    let tcp = transport == Transport::Tcp;
    // What stays within the workload arrives there.
    let is_own = dst.ip().is_loopback() || topology().addresses().any(|own| own == dst.ip());
    let arrives = tcp && is_own && (decision.path == Path::Pass || decision.proxy_port == 0);
    if !arrives {
        return Ok(Outcome::of(case, &decision, src));
    }
    let tables = tables.with_arrival(decision.arrival);
    let decision = decide::inbound(
        &tables,
        0,
        header,
        &InboundCall {
            src: Endpoint::new(src.into(), 0),
            dst: dst.into(),
            interface: 1,
        },
    );
    Ok(Outcome::of_arrived(case, &decision, src))
}

fn inbound(case: &Case, planned: &WorkloadPlan) -> Result<Outcome, String> {
    if case.protocol == Protocol::Udp {
        return Ok(Outcome::passed());
    }
    let interface = case.in_interface.as_deref().ok_or("no inInterface")?;
    let src = case.src.unwrap_or_else(|| peer(interface, case.dst));
    let network = topology();
    let index = network.index(interface);
    let call = InboundCall {
        src: Endpoint::new(src.into(), 0),
        dst: SocketAddr::new(case.dst, case.dport).into(),
        interface: index.ok_or_else(|| format!("there is no interface {interface:?}"))?,
    };
    let tables = tables(planned, network);
    let decision = decide::inbound(&tables, 0, &planned.plan.header, &call);
    Ok(Outcome::of_arrived(case, &decision, src))
}

fn tables(planned: &WorkloadPlan, network: Network) -> MemTables<'_> {
    MemTables::new(&planned.plan, &planned.workload.addresses).with_network(network)
}

impl Outcome {
    fn passed() -> Self {
        Self {
            captured: false,
            to_port: None,
            original_dst: None,
            local_addr_seen: None,
            peer_addr_seen: None,
        }
    }

    /// Of a connection that leaves, or is led to the proxy on its way.
    fn of(case: &Case, decision: &Decision, src: IpAddr) -> Self {
        if decision.path != Path::Proxy {
            return Self::passed();
        }
        let loopback = Endpoint::from(SocketAddr::new(case.dst, 0)).addr.loopback();
        let original = SocketAddr::new(case.dst, case.dport);
        let is_tcp = case.protocol == Protocol::Tcp;
        let local = SocketAddr::new(loopback.into(), decision.proxy_port);
        Self {
            captured: true,
            to_port: Some(decision.proxy_port),
            original_dst: is_tcp.then_some(original),
            local_addr_seen: is_tcp.then_some(local),
            peer_addr_seen: Some(src),
        }
    }

    /// Of a connection where it arrives: there it keeps its local address.
    fn of_arrived(case: &Case, decision: &Decision, src: IpAddr) -> Self {
        if decision.path != Path::Proxy {
            return Self::passed();
        }
        let original = SocketAddr::new(case.dst, case.dport);
        Self {
            captured: true,
            to_port: Some(decision.proxy_port),
            original_dst: Some(original),
            local_addr_seen: Some(original),
            peer_addr_seen: Some(src),
        }
    }
}
