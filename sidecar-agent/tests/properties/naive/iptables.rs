//! The rules of `istio-iptables` for a workload with a proxy, one after the other; the first that
//! matches decides.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use sidecar_agent::model::mesh::{InterceptionMode, MeshConfig};
use sidecar_common::{Path, Reason};

use super::{Call, Expected, Workload, outcome};
use crate::subject::Outcome;

/// What a rule does.
#[derive(Clone, Copy, Debug)]
enum Verdict {
    /// Not captured.
    Return(Reason),
    /// To this port of the proxy's.
    Redirect(u16, Reason),
}

use Verdict::{Redirect, Return};

/// What becomes of a connection that no real listener of the proxy's takes. `at_itself` tells what
/// becomes of one that somebody else makes to the workload.
pub fn outbound(
    mesh: &MeshConfig,
    workload: &Workload<'_>,
    call: &Call<'_>,
    is_real: bool,
    at_itself: impl Fn() -> Outcome,
) -> Expected {
    if call.udp && (workload.traffic.dns.is_none() || call.dst.port() != 53) {
        return outcome(Path::Pass, Reason::NotIncluded).into();
    }
    let rules = output(mesh, workload, call, is_real);
    let mut also = Vec::new();
    for (_, verdict) in rules.iter().filter(|(matches, _)| *matches) {
        match verdict {
            Return(reason) => also.push(*reason),
            Redirect(port, reason) if also.is_empty() => {
                return redirected(call.dst, *port, *reason).into();
            }
            Redirect(..) => break,
        }
    }
    let passes = Expected {
        outcome: outcome(Path::Pass, also[0]),
        also,
    };
    if is_marked(workload, call) && !is_real {
        let arrived = at_itself();
        if arrived.path == Path::Proxy {
            let port = mesh.proxy_inbound_listen_port;
            return redirected(call.dst, port, Reason::ProxySelfCall).into();
        }
    }
    passes
}

/// The chain `ISTIO_OUTPUT` of the nat table.
fn output(
    mesh: &MeshConfig,
    workload: &Workload<'_>,
    call: &Call<'_>,
    is_real: bool,
) -> Vec<(bool, Verdict)> {
    let settings = &workload.traffic;
    let Call {
        dst,
        src,
        uid,
        gid,
        udp,
        interface,
    } = *call;
    let (ip, port) = (dst.ip(), dst.port());
    let tcp = !udp;
    let lo = is_over_lo(workload, ip);
    let interface = if lo { Some("lo") } else { interface };
    let in_loopback = is_in_loopback(workload, ip);
    let dns = settings.dns.is_some();
    let own_call = if ip.is_loopback() {
        Reason::Loopback
    } else {
        Reason::SelfCall
    };
    let inbound = Redirect(mesh.proxy_inbound_listen_port, Reason::ProxySelfCall);
    let outbound = |reason| Redirect(mesh.proxy_listen_port, reason);

    let mut rules = vec![
        // Without rules for IPv6 nothing of it is captured.
        (
            ip.is_ipv6() && !settings.is_v6_on(&workload.addresses),
            Return(Reason::Ipv6Off),
        ),
        (
            interface.is_some_and(|name| settings.excludes_interface(name)),
            Return(Reason::ExcludedInterface),
        ),
        (tcp && is_real, Return(Reason::NoneListener)),
        (
            settings.exclude_outbound.contains(&port),
            Return(Reason::ExcludedPort),
        ),
        (
            lo && src.is_some_and(is_passthrough),
            Return(Reason::Passthrough),
        ),
    ];
    for (ids, id, exempts_dns) in [(&settings.uids, uid, true), (&settings.gids, gid, false)] {
        for proxy in ids {
            let is_it = id == *proxy;
            let is_self_call = lo && tcp && !in_loopback && port != settings.tunnel_port;
            rules.push((
                is_self_call && is_it && !(exempts_dns && dns && port == 53),
                inbound,
            ));
            if settings.exempts_self() {
                rules.push((
                    lo && !is_it && (!dns || (tcp && port != 53)),
                    Return(own_call),
                ));
            }
            rules.push((is_it, Return(Reason::ProxyOwn)));
        }
    }
    rules.push((!settings.captures_group(gid), Return(Reason::OwnerGroup)));
    if let Some(servers) = &settings.dns {
        rules.push((
            port == 53 && (servers.is_empty() || servers.contains(&ip)),
            Redirect(15053, Reason::Dns),
        ));
    }
    rules.push((in_loopback, Return(Reason::Loopback)));
    let within = |nets: &[ipnet::IpNet]| nets.iter().any(|net| net.contains(&ip));
    rules.push((
        within(&settings.exclude_ranges),
        Return(Reason::ExcludedRange),
    ));
    match &settings.include_ranges {
        None => rules.push((tcp, outbound(Reason::CaptureAll))),
        Some(nets) => {
            rules.push((
                tcp && settings.include_outbound.contains(&port),
                outbound(Reason::IncludedPort),
            ));
            rules.push((tcp && within(nets), outbound(Reason::IncludedRange)));
        }
    }
    rules.push((true, Return(Reason::NotIncluded)));
    rules
}

/// Whether a packet gets mark 1338 in the mangle table, and keeps it as far as the ports.
fn is_marked(workload: &Workload<'_>, call: &Call<'_>) -> bool {
    let settings = &workload.traffic;
    let Call { dst, src, .. } = call;
    let is_proxy = settings.uids.contains(&call.uid) || settings.gids.contains(&call.gid);
    // A transparent proxy's connections for others have their addresses, and mark 1337.
    let for_others = src.is_some_and(|src| !is_over_lo(workload, src));
    let has_rules = dst.is_ipv4() || settings.is_v6_on(&workload.addresses);
    settings.mode == InterceptionMode::Tproxy
        && !call.udp
        && is_over_lo(workload, dst.ip())
        && !is_in_loopback(workload, dst.ip())
        && has_rules
        && is_proxy
        && !settings.excludes_interface("lo")
        && !src.is_some_and(is_passthrough)
        && !for_others
}

/// The rules at the head of the PREROUTING chains. `None`: the ports decide.
pub fn prerouting(
    mesh: &MeshConfig,
    workload: &Workload<'_>,
    interface: Option<&str>,
    dst: SocketAddr,
) -> Option<Outcome> {
    let settings = &workload.traffic;
    let is_v6_off = dst.is_ipv6() && !settings.is_v6_on(&workload.addresses);
    let is_virtual = interface.is_some_and(|name| {
        settings
            .virtual_interfaces
            .iter()
            .any(|known| known == name)
    });
    if !is_virtual {
        return is_v6_off.then(|| outcome(Path::Pass, Reason::Ipv6Off));
    }
    let captured = match &settings.include_ranges {
        None => true,
        Some(nets) => nets.iter().any(|net| net.contains(&dst.ip())),
    };
    Some(if captured && !is_v6_off {
        redirected(dst, mesh.proxy_listen_port, Reason::VirtualInterface)
    } else {
        outcome(Path::Pass, Reason::VirtualInterface)
    })
}

/// Led to a port of the proxy's.
pub fn redirected(dst: SocketAddr, port: u16, reason: Reason) -> Outcome {
    let loopback: IpAddr = match dst.ip() {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    Outcome {
        targets: [SocketAddr::new(loopback, port).to_string()].into(),
        ..outcome(Path::Proxy, reason)
    }
}

/// Whether it is routed over the loopback interface.
fn is_over_lo(workload: &Workload<'_>, ip: IpAddr) -> bool {
    ip.is_loopback() || workload.addresses.contains(&ip)
}

fn is_in_loopback(workload: &Workload<'_>, ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => workload.traffic.loopback.contains(&ip),
        IpAddr::V6(ip) => ip == Ipv6Addr::LOCALHOST,
    }
}

pub fn is_passthrough(ip: IpAddr) -> bool {
    ip == IpAddr::from([127, 0, 0, 6]) || ip == IpAddr::from([0, 0, 0, 0, 0, 0, 0, 6])
}
