//! Outbound rules of a workload without a proxy.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use sidecar_common::{Path, Reason, values::Rule};

use crate::{
    model::{ResourceRef, mesh::MeshConfig, sidecar::OutboundTrafficPolicy},
    resolve::{
        Finding, FindingKind, ResolvedWorkload,
        capture::{self, Families},
        listeners::{Bind, Member, OutboundListener},
        protocol::Protocol,
        select,
    },
};

use super::{
    builder::{Builder, exempting_self, reachable_from, rule},
    egress_proxy::EgressProxy,
    plan::{Listener, Target, UnixAddr},
    prefixes::{EVERYWHERE, Prefixes},
};

/// Adds the outbound rules.
pub(super) fn compile(
    builder: &mut Builder,
    workload: &ResolvedWorkload,
    mesh: &MeshConfig,
    listeners: &[OutboundListener<'_>],
    proxy: Option<EgressProxy<'_>>,
) {
    let sidecar = workload
        .sidecar
        .as_ref()
        .map(|sidecar| sidecar.reference("Sidecar"));
    let mut egress = Egress {
        builder,
        workload,
        sidecar,
        prefixes: Prefixes::new(&workload.traffic),
    };
    // Real listeners are called at their address, whatever captured services or exclude lists
    // say of it.
    for listener in listeners.iter().filter(|listener| listener.real) {
        egress.listener(listener);
    }
    for listener in listeners.iter().filter(|listener| !listener.real) {
        egress.listener(listener);
    }
    egress.finish(mesh, proxy);
}

/// Where a rule leads.
enum Lead {
    /// To where the connection was going.
    Original,
    /// To these.
    Targets(Vec<Target>),
    /// Nowhere without an L7 proxy.
    NeedsProxy,
}

struct Egress<'a> {
    builder: &'a mut Builder,
    workload: &'a ResolvedWorkload,
    sidecar: Option<ResourceRef>,
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
                let mut own = Families::of(&self.workload.addresses).loopbacks();
                own.extend(&self.workload.addresses);
                self.at_addresses(listener, first, &own);
            }
            Bind::Wildcard => {
                for member in &listener.members {
                    self.anywhere(listener, member);
                }
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
        let mut entry = self.entry(listener, first, targets);
        entry.unix_bind = Some(address.clone());
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
            && self.workload.traffic.exempts_self()
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

    /// A captured listener on the wildcard address.
    fn anywhere(&mut self, listener: &OutboundListener<'_>, member: &Member<'_>) {
        let service = member.service;
        if let Some(net) = member.network {
            let lead = own(member);
            let index = self.index(listener, member, &lead);
            self.network(net, index, listener, member, &lead);
            return;
        }
        if member.protocol == Protocol::HttpProxy {
            let message = "captures a forward proxy's port, which only an L7 proxy can serve";
            let remedy = "give the workload a proxy, or remove the listener";
            self.report(FindingKind::NeedsProxy, listener, member, message, remedy);
            return;
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
            return;
        }
        self.at_endpoints(listener, member);
        if !member.protocol.is_http() && member.protocol != Protocol::Tls {
            // Istio: without an address, a TCP service has its port for every destination.
            let lead = own(member);
            let index = self.index(listener, member, &lead);
            for net in EVERYWHERE {
                self.network(net, index, listener, member, &lead);
            }
        } else if member.port.endpoints.is_empty() {
            let message = format!(
                "{} has no known address: only an L7 proxy can recognise it, by name",
                describe(member)
            );
            let remedy = "give the service addresses, or the workload a proxy";
            self.report(FindingKind::NeedsProxy, listener, member, &message, remedy);
        }
    }

    /// A service without addresses is called at its endpoints: there a connection stays, if the
    /// endpoint's port is the service's.
    fn at_endpoints(&mut self, listener: &OutboundListener<'_>, member: &Member<'_>) {
        let keeps = member.service.keeps_destination(member.port);
        let mut staying = None;
        for target in &member.port.endpoints {
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
                let lead = Lead::Targets(vec![target.clone()]);
                let index = self.index(listener, member, &lead);
                self.rule(ip, index, listener, member, &lead)
            };
            self.exact(ip, listener, rule);
        }
    }

    /// A rule for one address, if calls to it get that far.
    fn exact(&mut self, ip: IpAddr, listener: &OutboundListener<'_>, rule: Rule) {
        if listener.real || self.workload.traffic.outbound(ip, listener.port).is_ok() {
            self.builder.outbound(ip, listener.port, rule);
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
        if listener.real || !self.workload.traffic.exempts_self() {
            rule
        } else {
            exempting_self(rule)
        }
    }

    /// Adds the listener's entry in the plan.
    fn index(&mut self, listener: &OutboundListener<'_>, member: &Member<'_>, lead: &Lead) -> u32 {
        let targets = match lead {
            Lead::Original => vec![Target::Original],
            Lead::Targets(targets) => targets.clone(),
            Lead::NeedsProxy => Vec::new(),
        };
        let entry = self.entry(listener, member, targets);
        self.builder.listener(entry)
    }

    fn entry(
        &self,
        listener: &OutboundListener<'_>,
        member: &Member<'_>,
        targets: Vec<Target>,
    ) -> Listener {
        Listener {
            name: name(listener),
            resource: self.resource(member),
            field: self.field(listener),
            service: Some(member.service.hostname.clone()),
            targets,
            unix_bind: None,
        }
    }

    /// The resource that declares a listener: the Sidecar, else the service that implies it.
    fn resource(&self, member: &Member<'_>) -> Option<ResourceRef> {
        self.sidecar
            .clone()
            .or_else(|| member.service.origin.clone())
    }

    fn field(&self, listener: &OutboundListener<'_>) -> String {
        match self.sidecar {
            Some(_) => format!("spec.egress[{}]", listener.egress),
            None => String::new(),
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
        const SHOWN: usize = 5;
        let mut names: Vec<&str> = listener
            .dropped
            .iter()
            .take(SHOWN)
            .map(|service| service.hostname.as_str())
            .collect();
        if listener.dropped.len() > SHOWN {
            names.push("...");
        }
        let message = format!(
            "leads to {}; without effect on it: {} ({} in all)",
            describe(first),
            names.join(", "),
            listener.dropped.len()
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
        let related = member
            .service
            .origin
            .clone()
            .filter(|_| self.sidecar.is_some());
        let field = self.field(listener);
        let finding = Finding {
            resource: self.resource(member),
            kind,
            field,
            message: format!("{}: {message}", name(listener)),
            remedy: remedy.into(),
            related: related.into_iter().collect(),
        };
        // One listener at several addresses has one finding.
        if self.builder.findings.last() != Some(&finding) {
            self.builder.findings.push(finding);
        }
    }

    fn finish(self, mesh: &MeshConfig, proxy: Option<EgressProxy<'_>>) {
        let Self {
            builder,
            workload,
            sidecar,
            prefixes,
        } = self;
        if !capture::captures(workload.mode()) {
            builder.outbound_rest([].into(), rule(Path::Pass, Reason::InterceptionNone, None));
            return;
        }
        let exempting = |rule| {
            if workload.traffic.exempts_self() {
                exempting_self(rule)
            } else {
                rule
            }
        };
        if let Some(proxy) = proxy {
            let rules = proxy.rules(builder, sidecar).map(exempting);
            let (prefixes, default) = prefixes.finish_by_family(rules);
            builder.outbound_rest(prefixes, default);
            return;
        }
        let spec = workload.sidecar.as_ref().map(|sidecar| &sidecar.spec);
        // The Sidecar's word on unknown destinations, if it has one, is its virtualOutbound
        // listener's.
        let index = sidecar
            .filter(|_| spec.is_some_and(|spec| spec.outbound_traffic_policy.is_some()))
            .map(|resource| {
                builder.listener(Listener {
                    name: "egress virtualOutbound".into(),
                    resource: Some(resource),
                    field: "spec.outboundTrafficPolicy".into(),
                    service: None,
                    targets: vec![Target::Original],
                    unix_bind: None,
                })
            });
        let policy = match select::outbound_traffic_policy(spec, mesh) {
            OutboundTrafficPolicy::AllowAny => rule(Path::Pass, Reason::AllowAny, index),
            OutboundTrafficPolicy::RegistryOnly => rule(Path::Deny, Reason::RegistryOnly, index),
        };
        let policy = exempting(policy);
        let (prefixes, default) = prefixes.finish(|_| policy);
        builder.outbound_rest(prefixes, default);
    }
}

/// Where calls to the service's own addresses lead.
fn own(member: &Member<'_>) -> Lead {
    if member.service.keeps_destination(member.port) {
        Lead::Original
    } else {
        Lead::Targets(member.port.endpoints.clone())
    }
}

fn describe(member: &Member<'_>) -> String {
    format!("{}:{}", member.service.hostname, member.port.number)
}

/// The listener's name for people.
pub(super) fn name(listener: &OutboundListener<'_>) -> String {
    match &listener.bind {
        Bind::Wildcard => format!("egress 0.0.0.0:{}", listener.port),
        Bind::Ip(ip) => format!("egress {}", SocketAddr::new(*ip, listener.port)),
        Bind::Unix(address) => format!("egress {address}"),
    }
}
