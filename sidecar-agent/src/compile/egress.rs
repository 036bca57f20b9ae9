//! Outbound rules of a workload without a proxy.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, LazyLock},
};

use ipnet::IpNet;
use sidecar_common::{Path, Reason, decide::Direction, values::Rule};

use crate::{
    model::{mesh::MeshConfig, sidecar::OutboundTrafficPolicy},
    resolve::{
        Finding, FindingKind,
        capture::{self, Families},
        listeners::{Bind, Member, OutboundListener},
        protocol::Protocol,
    },
};

use super::{
    builder::{self, Compiled, OutboundBuilder, exempting_self, reachable_from, rule},
    egress_proxy::EgressProxy,
    outbound::Inputs,
    plan::{DeclaredBy, Field, Listener, Place, Target, UnixAddr},
    prefixes::{EVERYWHERE, Prefixes},
};

/// Compiles the outbound rules.
pub(super) fn compile(
    builder: OutboundBuilder,
    inputs: &Inputs,
    mesh: &MeshConfig,
    listeners: &[OutboundListener<'_>],
    proxy: Option<EgressProxy<'_>>,
) -> Compiled {
    let mut egress = Egress {
        builder,
        inputs,
        prefixes: Prefixes::new(&inputs.traffic),
    };
    // Real listeners are called at their address, whatever captured services or exclude lists
    // say of it.
    for listener in listeners.iter().filter(|listener| listener.real) {
        egress.listener(listener);
    }
    for listener in listeners.iter().filter(|listener| !listener.real) {
        egress.listener(listener);
    }
    egress.finish(mesh, proxy)
}

/// Where a rule leads.
enum Lead {
    /// To where the connection was going.
    Original,
    /// To these.
    Targets(Arc<[Target]>),
    /// Nowhere without an L7 proxy.
    NeedsProxy,
}

struct Egress<'a> {
    builder: OutboundBuilder,
    inputs: &'a Inputs,
    prefixes: Prefixes<'a>,
}

impl Egress<'_> {
    fn listener(&mut self, listener: &OutboundListener<'_>) {
        for member in &listener.members {
            self.builder.dns.extend(member.service.dns.iter().cloned());
        }
        let Some(first) = listener.members.first() else {
            return;
        };
        if !listener.dropped.is_empty() {
            self.report_dropped(listener, first);
        }
        match &listener.bind {
            Bind::Unix(address) => self.at_unix(listener, first, address),
            Bind::Ip(ip) => self.at_addresses(listener, first, &[*ip]),
            Bind::Wildcard if listener.real => {
                let mut own = Families::of(&self.inputs.addresses).loopbacks();
                own.extend(&self.inputs.addresses);
                self.at_addresses(listener, first, &own);
            }
            Bind::Wildcard => {
                let unknown: Vec<&Member<'_>> = listener
                    .members
                    .iter()
                    .filter(|member| !self.anywhere(listener, member))
                    .collect();
                self.report_unknown(listener, &unknown);
            }
        }
    }

    /// A unix socket: the relay listens on it.
    fn at_unix(&mut self, listener: &OutboundListener<'_>, first: &Member<'_>, address: &UnixAddr) {
        if listener.members.len() > 1 {
            let message = format!(
                "{address} leads to {}; other services, and other ports of it, cannot be told \
                 apart without an L7 proxy",
                describe(first)
            );
            let remedy = "name one service with one port in hosts";
            self.report(
                FindingKind::ListenerConflict,
                listener,
                first,
                &message,
                remedy,
            );
        }
        let targets = first.service.targets(first.port);
        if targets.is_empty() {
            self.report_no_endpoint(listener, first);
        }
        let entry = self.entry(listener, first, targets);
        self.builder.listener(entry);
    }

    /// A listener at single addresses: bound there for real, written in the Sidecar, or the
    /// virtual addresses (or endpoints) of its service.
    fn at_addresses(
        &mut self,
        listener: &OutboundListener<'_>,
        first: &Member<'_>,
        ips: &[IpAddr],
    ) {
        // An address that was neither written nor is a virtual one is an endpoint's.
        let stays = first.service.keeps_destination(first.port) || first.service.vips.is_empty();
        let lead = if !listener.explicit && stays {
            Lead::Original
        } else if self.needs_proxy(listener, first) {
            Lead::NeedsProxy
        } else {
            Lead::Targets(first.service.targets(first.port))
        };
        if !listener.real
            && listener.explicit
            && self.inputs.traffic.exempts_self()
            && ips.iter().any(IpAddr::is_loopback)
        {
            let message = "is bound to a loopback address, where nothing is captured";
            let remedy = "set captureMode: NONE";
            self.report(FindingKind::Unreachable, listener, first, message, remedy);
        }
        let index = self.index(listener, first, &lead);
        for ip in ips {
            let rule = self.rule(*ip, index, listener, first, &lead);
            self.exact(*ip, listener, rule);
        }
    }

    /// A captured listener on the wildcard address. Returns whether the service can be recognised by
    /// an address.
    fn anywhere(&mut self, listener: &OutboundListener<'_>, member: &Member<'_>) -> bool {
        let service = member.service;
        if let Some(net) = member.network {
            let lead = own(member);
            let index = self.index(listener, member, &lead);
            self.network(net, index, listener, member, &lead);
            return true;
        }
        if member.protocol == Protocol::HttpProxy {
            let message = "captures a forward proxy's port, which only an L7 proxy can serve";
            let remedy = "give the workload a proxy, or remove the listener";
            self.report(FindingKind::NeedsProxy, listener, member, message, remedy);
            return true;
        }
        // What is told apart by Host or SNI is told apart by address here.
        if member.protocol.is_http() && !service.vips.is_empty() {
            let lead = own(member);
            let index = self.index(listener, member, &lead);
            for ip in service.single_vips() {
                let rule = self.rule(ip, index, listener, member, &lead);
                self.exact(ip, listener, rule);
            }
            for net in service.vip_networks() {
                self.network(net, index, listener, member, &lead);
            }
            return true;
        }
        self.at_endpoints(listener, member);
        if !member.protocol.is_http() && member.protocol != Protocol::Tls {
            // Istio: without an address, a TCP service has its port for every destination.
            let lead = own(member);
            let index = self.index(listener, member, &lead);
            for net in EVERYWHERE {
                self.network(net, index, listener, member, &lead);
            }
            return true;
        }
        !member.port.endpoints.is_empty()
    }

    /// A service without addresses is called at its endpoints: there a connection stays, if the
    /// endpoint's port is the service's.
    fn at_endpoints(&mut self, listener: &OutboundListener<'_>, member: &Member<'_>) {
        let keeps = member.service.keeps_destination(member.port);
        let mut staying = None;
        for target in &*member.port.endpoints {
            let Target::Tcp(address) = target else {
                continue;
            };
            let ip = address.ip();
            let rule = if keeps || address.port() == listener.port {
                let lead = Lead::Original;
                let index = match staying {
                    Some(index) => index,
                    None => *staying.insert(self.index(listener, member, &lead)),
                };
                self.rule(ip, index, listener, member, &lead)
            } else {
                let lead = Lead::Targets([target.clone()].into());
                let index = self.index(listener, member, &lead);
                self.rule(ip, index, listener, member, &lead)
            };
            self.exact(ip, listener, rule);
        }
    }

    /// A rule for one address, if calls to it get that far.
    fn exact(&mut self, ip: IpAddr, listener: &OutboundListener<'_>, rule: Rule) {
        if listener.real || self.inputs.traffic.outbound(ip, listener.port).is_ok() {
            self.builder.rule(ip, listener.port, rule);
        }
    }

    fn network(
        &mut self,
        net: IpNet,
        index: u32,
        listener: &OutboundListener<'_>,
        member: &Member<'_>,
        lead: &Lead,
    ) {
        let rule = self.rule(net.addr(), index, listener, member, lead);
        self.prefixes.add(listener.port, net, rule);
    }

    /// The rule for connections to `ip` (or its network).
    fn rule(
        &mut self,
        ip: IpAddr,
        index: u32,
        listener: &OutboundListener<'_>,
        member: &Member<'_>,
        lead: &Lead,
    ) -> Rule {
        let reason = if listener.real {
            Reason::EgressListener
        } else {
            Reason::EgressService
        };
        let rule = match lead {
            Lead::Original => rule(Path::Direct, reason, Some(index)),
            Lead::NeedsProxy => rule(Path::Deny, Reason::NeedsProxy, Some(index)),
            Lead::Targets(targets) if targets.is_empty() => {
                self.report_no_endpoint(listener, member);
                rule(Path::Deny, Reason::NoEndpoint, Some(index))
            }
            Lead::Targets(targets) => match reachable_from(ip, targets) {
                endpoints if endpoints.is_empty() => rule(Path::Relay, reason, Some(index)),
                endpoints => self
                    .builder
                    .lead_to(rule(Path::Direct, reason, Some(index)), endpoints),
            },
        };
        if listener.real {
            builder::first(rule)
        } else if !self.inputs.traffic.exempts_self() {
            rule
        } else {
            exempting_self(rule)
        }
    }

    /// Adds the listener's entry in the plan.
    fn index(&mut self, listener: &OutboundListener<'_>, member: &Member<'_>, lead: &Lead) -> u32 {
        let targets = match lead {
            Lead::Original => original(),
            Lead::Targets(targets) => Arc::clone(targets),
            Lead::NeedsProxy => Arc::default(),
        };
        let entry = self.entry(listener, member, targets);
        self.builder.listener(entry)
    }

    fn entry(
        &self,
        listener: &OutboundListener<'_>,
        member: &Member<'_>,
        targets: Arc<[Target]>,
    ) -> Listener {
        Listener {
            direction: Direction::Outbound,
            place: place(listener),
            declared: self.declared(listener, member),
            service: Some(Arc::clone(&member.service.hostname)),
            targets,
        }
    }

    /// What declares a listener: the Sidecar, else the service that implies it.
    fn declared(&self, listener: &OutboundListener<'_>, member: &Member<'_>) -> DeclaredBy {
        match &member.service.origin {
            _ if self.inputs.sidecar => DeclaredBy::Sidecar(Field::Egress(listener.egress)),
            Some(service) => DeclaredBy::Resource(Arc::clone(service)),
            None => DeclaredBy::Nothing,
        }
    }

    /// Whether only an L7 proxy could choose among the services of a listener at an address of
    /// its own.
    fn needs_proxy(&mut self, listener: &OutboundListener<'_>, first: &Member<'_>) -> bool {
        let several = first.protocol.is_http()
            && listener
                .members
                .iter()
                .any(|m| m.service.hostname != first.service.hostname);
        if first.protocol != Protocol::HttpProxy && !several {
            return false;
        }
        let message = if several {
            "exposes several HTTP services, which are told apart by the Host header; its \
             connections are refused"
        } else {
            "is an HTTP forward proxy; its connections are refused"
        };
        let remedy = "name one service in hosts, use protocol TCP, or give the workload a proxy";
        self.report(FindingKind::NeedsProxy, listener, first, message, remedy);
        true
    }

    fn report_dropped(&mut self, listener: &OutboundListener<'_>, first: &Member<'_>) {
        let message = format!(
            "leads to {}; without effect on it: {}",
            describe(first),
            names(listener.dropped.iter().map(|service| &*service.hostname))
        );
        let remedy = "give the services addresses of their own, or select only one of them";
        self.report(
            FindingKind::ListenerConflict,
            listener,
            first,
            &message,
            remedy,
        );
    }

    fn report_unknown(&mut self, listener: &OutboundListener<'_>, members: &[&Member<'_>]) {
        let Some(first) = members.first() else {
            return;
        };
        let message = format!(
            "no address is known of {}: only an L7 proxy can recognise them, by name",
            names(members.iter().map(|member| &*member.service.hostname))
        );
        let remedy = "give the services addresses, or the workload a proxy";
        self.report(FindingKind::NeedsProxy, listener, first, &message, remedy);
    }

    fn report_no_endpoint(&mut self, listener: &OutboundListener<'_>, member: &Member<'_>) {
        let message = if member.service.dns.is_empty() {
            format!(
                "{} has no endpoint; its connections are refused",
                describe(member)
            )
        } else {
            format!(
                "{} has no endpoint, since {} could not be resolved (yet); its connections are \
                 refused",
                describe(member),
                member.service.dns.join(", ")
            )
        };
        let remedy = "add an endpoint, or correct the selector or the host name";
        self.report(FindingKind::NoEndpoint, listener, member, &message, remedy);
    }

    fn report(
        &mut self,
        kind: FindingKind,
        listener: &OutboundListener<'_>,
        member: &Member<'_>,
        message: &str,
        remedy: &str,
    ) {
        let origin = member.service.origin.as_deref().cloned();
        let (resource, field, related) = if self.inputs.sidecar {
            (None, Field::Egress(listener.egress).to_string(), origin)
        } else {
            (origin, String::new(), None)
        };
        let finding = Finding {
            resource,
            kind,
            field,
            message: format!("egress {}: {message}", place(listener)),
            remedy: remedy.into(),
            related: related.into_iter().collect(),
        };
        // One listener at several addresses has one finding.
        if self.builder.findings.last() != Some(&finding) {
            self.builder.findings.push(finding);
        }
    }

    fn finish(self, mesh: &MeshConfig, proxy: Option<EgressProxy<'_>>) -> Compiled {
        let Self {
            mut builder,
            inputs,
            prefixes,
        } = self;
        if !capture::captures(inputs.traffic.mode) {
            let pass = rule(Path::Pass, Reason::InterceptionNone, None);
            return builder.finish([].into(), pass);
        }
        let exempting = |rule| {
            if inputs.traffic.exempts_self() {
                exempting_self(rule)
            } else {
                rule
            }
        };
        if let Some(proxy) = proxy {
            let rules = proxy.rules(&mut builder).map(exempting);
            let (prefixes, default) = prefixes.finish_by_family(rules);
            return builder.finish(prefixes, default);
        }
        // The Sidecar's word on unknown destinations, if it has one, is its virtualOutbound
        // listener's.
        let index = inputs.policy.map(|_| {
            builder.listener(Listener {
                direction: Direction::Outbound,
                place: Place::Unknown,
                declared: DeclaredBy::Sidecar(Field::OutboundTrafficPolicy),
                service: None,
                targets: original(),
            })
        });
        let policy = match inputs.policy.unwrap_or(mesh.outbound_traffic_policy) {
            OutboundTrafficPolicy::AllowAny => rule(Path::Pass, Reason::AllowAny, index),
            OutboundTrafficPolicy::RegistryOnly => rule(Path::Deny, Reason::RegistryOnly, index),
        };
        let policy = exempting(policy);
        let (prefixes, default) = prefixes.finish(|_| policy);
        builder.finish(prefixes, default)
    }
}

/// Where calls to the service's own addresses lead.
fn own(member: &Member<'_>) -> Lead {
    if member.service.keeps_destination(member.port) {
        Lead::Original
    } else {
        Lead::Targets(Arc::clone(&member.port.endpoints))
    }
}

/// A few of the names, and how many there are.
fn names<'a>(all: impl ExactSizeIterator<Item = &'a str>) -> String {
    const SHOWN: usize = 5;
    let count = all.len();
    let shown: Vec<&str> = all.take(SHOWN).collect();
    let more = if count > SHOWN { ", ..." } else { "" };
    format!("{}{more} ({count} in all)", shown.join(", "))
}

fn describe(member: &Member<'_>) -> String {
    format!("{}:{}", member.service.hostname, member.port.number)
}

/// Where a listener is.
pub(super) fn place(listener: &OutboundListener<'_>) -> Place {
    match &listener.bind {
        Bind::Wildcard => Place::Ip(SocketAddr::new([0, 0, 0, 0].into(), listener.port)),
        Bind::Ip(ip) => Place::Ip(SocketAddr::new(*ip, listener.port)),
        Bind::Unix(address) => Place::Unix(address.clone()),
    }
}

/// Most listeners lead to where the connection was going, and share this.
pub(super) fn original() -> Arc<[Target]> {
    static ORIGINAL: LazyLock<Arc<[Target]>> = LazyLock::new(|| [Target::Original].into());
    Arc::clone(&ORIGINAL)
}
