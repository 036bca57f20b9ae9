//! Which egress listeners exist: address, port, real or captured, and the services on each.
//!
//! Istio (`listener.go`) keys listeners by bind address and port. HTTP services share
//! `0.0.0.0:PORT` and are told apart by `Host`; others have the service's virtual address.
//! Listeners are made in the order of the Sidecar; when the catch-all (the one without a port)
//! comes, every key made so far is locked: that is "the most specific port wins".

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use foldhash::fast::RandomState;
use ipnet::IpNet;
use smallvec::{SmallVec, smallvec};

use crate::{
    compile::plan::UnixAddr,
    model::{
        mesh::{InterceptionMode, MeshConfig},
        sidecar::EgressListener,
    },
};

use super::{
    capture::{self, Families},
    protocol::Protocol,
    registry::{Discovery, Port, Provider, Registry, Service},
    visibility::{self, Selected},
};

/// What the listeners of a workload depend on, besides the Sidecar and the registry.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Mesh-wide settings.
    pub mesh: &'a MeshConfig,
    /// The workload's namespace.
    pub namespace: &'a str,
    /// The workload's interception mode.
    pub mode: InterceptionMode,
    /// The workload's addresses.
    pub addresses: &'a [IpAddr],
    /// The proxy may not bind ports below 1024 (`ISTIO_META_UNPRIVILEGED_POD`).
    pub unprivileged: bool,
}

/// Where a listener sits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Bind {
    /// Every address of either family.
    Wildcard,
    /// One address.
    Ip(IpAddr),
    /// A unix socket.
    Unix(UnixAddr),
}

/// An egress listener.
#[derive(Clone, Debug)]
pub struct OutboundListener<'a> {
    /// Index in the Sidecar's `egress`.
    pub egress: usize,
    /// Where it sits.
    pub bind: Bind,
    /// Its port; 0 for unix sockets.
    pub port: u16,
    /// A real listener, called at its address; else one that captured connections reach.
    pub real: bool,
    /// The address was written in the Sidecar, or follows from being real; else it is the
    /// service's own.
    pub explicit: bool,
    /// The services on it, at least one; the first stands for all where they cannot be told
    /// apart.
    pub members: SmallVec<[Member<'a>; 1]>,
    /// Services that wanted it and did not get it.
    pub dropped: Vec<&'a Service>,
    /// Services of the catch-all (its index in `egress`) that would have been on it, had it not
    /// been locked.
    pub shadowed: Vec<(usize, &'a Service)>,
}

/// A service on a listener.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// The service.
    pub service: &'a Service,
    /// Its port.
    pub port: &'a Port,
    /// The protocol: the listener's own, else that of the service's port.
    pub protocol: Protocol,
    /// On the wildcard address: the network whose connections are the service's.
    pub network: Option<IpNet>,
}

/// Host name, namespace and port.
type MemberId<'a> = (&'a str, &'a str, u16);

impl<'a> Member<'a> {
    /// What tells members apart: parts of one service, declared by several resources, are one.
    fn id(&self) -> MemberId<'a> {
        let Service {
            hostname,
            namespace,
            ..
        } = self.service;
        (hostname, namespace, self.port.number)
    }
}

/// The egress listeners of a workload, in the order in which they come to be.
#[must_use]
pub fn outbound<'a>(
    context: &Context<'_>,
    registry: &'a Registry,
    egress: &[EgressListener],
) -> Vec<OutboundListener<'a>> {
    let mut table = Table::default();
    for (index, listener) in egress.iter().enumerate() {
        let services = visibility::exposed(registry, context.namespace, listener);
        let site = Site::new(context, index, listener);
        if let Some(port) = &listener.port {
            let Ok(number) = u16::try_from(port.number) else {
                continue;
            };
            let protocol = Protocol::parse(&port.protocol);
            for service in &services {
                table.port_listener(context, &site, number, protocol, service);
            }
        } else {
            table.lock();
            for Selected { service, ports } in &services {
                for port in ports {
                    table.service_port(context, &site, service, port);
                }
            }
        }
    }
    table.listeners
}

/// What is common to the listeners that come from one element of `egress`.
struct Site {
    egress: usize,
    real: bool,
    /// Empty: the service decides.
    binds: Vec<Bind>,
}

impl Site {
    fn new(context: &Context<'_>, egress: usize, listener: &EgressListener) -> Self {
        let real = capture::egress_is_real(context.mode, listener.capture_mode, &listener.bind);
        let binds = if let Some(unix) = UnixAddr::parse(&listener.bind) {
            vec![Bind::Unix(unix)]
        } else if let Some(ip) = listener.bind_ip() {
            vec![Bind::from(ip)]
        } else if real {
            Families::of(context.addresses)
                .loopbacks()
                .into_iter()
                .map(Bind::Ip)
                .collect()
        } else {
            Vec::new()
        };
        Self {
            egress,
            real,
            binds,
        }
    }

    fn is_unix(&self) -> bool {
        matches!(self.binds.first(), Some(Bind::Unix(_)))
    }

    /// The address, as far as it is known before the service is.
    fn address(&self) -> Option<IpAddr> {
        match self.binds.first()? {
            Bind::Wildcard => Some(IpAddr::from([0, 0, 0, 0])),
            Bind::Ip(ip) => Some(*ip),
            // Not an address; certainly not the wildcard.
            Bind::Unix(_) => Some(IpAddr::from([127, 0, 0, 1])),
        }
    }
}

impl From<IpAddr> for Bind {
    fn from(ip: IpAddr) -> Self {
        if ip.is_unspecified() {
            Self::Wildcard
        } else {
            Self::Ip(ip.to_canonical())
        }
    }
}

#[derive(Default)]
struct Table<'a> {
    listeners: Vec<OutboundListener<'a>>,
    keys: HashMap<(Bind, u16), usize, RandomState>,
    /// What a listener already tells apart, so that a second service of the same kind is a
    /// conflict: per listener, the network, and the name where SNI tells services apart.
    taken: HashSet<(usize, Option<IpNet>, Option<&'a str>), RandomState>,
    /// The members of locked listeners that others wanted.
    members: HashMap<usize, HashSet<MemberId<'a>, RandomState>, RandomState>,
    /// Listeners below this index take no more services.
    locked: usize,
}

impl<'a> Table<'a> {
    fn lock(&mut self) {
        self.locked = self.listeners.len();
    }

    /// A listener with a port of its own takes the ports that the service exposes through it.
    fn port_listener(
        &mut self,
        context: &Context<'_>,
        site: &Site,
        number: u16,
        protocol: Protocol,
        selected: &Selected<'a>,
    ) {
        // On a unix socket, and for a forward proxy, any port of the service may be meant.
        let ports = match (site.is_unix(), protocol) {
            (false, Protocol::HttpProxy) => selected
                .ports
                .iter()
                .position(|port| port.protocol != Protocol::Udp)
                .and_then(|first| selected.ports.get(first..=first))
                .unwrap_or_default(),
            _ => &selected.ports[..],
        };
        for port in ports {
            self.add(
                context,
                site,
                number,
                protocol,
                Pair {
                    service: selected.service,
                    port,
                },
            );
        }
    }

    /// The catch-all makes a listener for each port of each service.
    fn service_port(
        &mut self,
        context: &Context<'_>,
        site: &Site,
        service: &'a Service,
        port: &'a Port,
    ) {
        self.add(
            context,
            site,
            port.number,
            port.protocol,
            Pair { service, port },
        );
    }

    fn add(
        &mut self,
        context: &Context<'_>,
        site: &Site,
        number: u16,
        protocol: Protocol,
        pair: Pair<'a>,
    ) {
        if pair.port.protocol == Protocol::Udp
            || protocol == Protocol::Udp
            || !site.is_unix() && !capture::may_bind(context.unprivileged, site.real, number)
            || capture::is_reserved(context.mesh, site.address(), number, protocol)
        {
            return;
        }
        let explicit = !site.binds.is_empty();
        for (bind, network) in places(context, site, protocol, pair) {
            let listener = OutboundListener {
                egress: site.egress,
                bind,
                port: number,
                real: site.real,
                explicit,
                members: SmallVec::new(),
                dropped: Vec::new(),
                shadowed: Vec::new(),
            };
            let Pair { service, port } = pair;
            self.join(
                listener,
                Member {
                    service,
                    port,
                    protocol,
                    network,
                },
            );
        }
    }

    fn join(&mut self, new: OutboundListener<'a>, member: Member<'a>) {
        let next = self.listeners.len();
        let egress = new.egress;
        let index = *self
            .keys
            .entry((new.bind.clone(), new.port))
            .or_insert(next);
        if index == next {
            self.listeners.push(new);
        }
        let Some(listener) = self.listeners.get_mut(index) else {
            return;
        };
        if index < self.locked {
            let members = self
                .members
                .entry(index)
                .or_insert_with(|| listener.members.iter().map(Member::id).collect());
            if !members.contains(&member.id()) {
                listener.shadowed.push((egress, member.service));
            }
            return;
        }
        let server_first = |protocol| protocol == Protocol::ServerFirst;
        let mixes = listener
            .members
            .first()
            .is_none_or(|first| server_first(first.protocol) == server_first(member.protocol));
        let name = (member.protocol == Protocol::Tls && !matches!(listener.bind, Bind::Ip(_)))
            .then_some(&*member.service.hostname);
        // HTTP services are told apart by Host; on a unix socket the order decides.
        let shares = member.protocol.is_http() || matches!(listener.bind, Bind::Unix(_));
        if mixes && (shares || self.taken.insert((index, member.network, name))) {
            listener.members.push(member);
        } else if !listener
            .members
            .iter()
            .any(|known| known.id() == member.id())
        {
            // Resources that declare parts of one service do not compete.
            listener.dropped.push(member.service);
        }
    }
}

#[derive(Clone, Copy)]
struct Pair<'a> {
    service: &'a Service,
    port: &'a Port,
}

/// Where listeners for a service's port sit, and the network each of them serves there.
fn places(
    context: &Context<'_>,
    site: &Site,
    protocol: Protocol,
    Pair { service, port }: Pair<'_>,
) -> SmallVec<[(Bind, Option<IpNet>); 1]> {
    if !site.binds.is_empty() {
        return site.binds.iter().map(|bind| (bind.clone(), None)).collect();
    }
    if protocol.is_http() {
        return smallvec![(Bind::Wildcard, None)];
    }
    if !service.vips.is_empty() {
        let single = service.single_vips().map(|ip| (Bind::Ip(ip), None));
        let networks = service
            .vip_networks()
            .map(|net| (Bind::Wildcard, Some(net)));
        return single.chain(networks).collect();
    }
    // Without an address the service takes the port for every destination. Not so a headless
    // one, or one whose endpoints are selected: it has a listener at each endpoint, and none
    // where there are none.
    let at_endpoints = service.discovery == Discovery::Passthrough
        && (service.provider == Provider::Kubernetes
            || !port.endpoints.is_empty()
            || !service.selector.is_empty());
    // An ExternalName is an alias, and takes nothing.
    let alias = service.provider == Provider::Kubernetes && service.discovery == Discovery::Dns;
    if !at_endpoints && !alias {
        return smallvec![(Bind::Wildcard, None)];
    }
    let own = context.addresses.first();
    port.ips()
        .filter(|ip| Some(ip) != own)
        .map(|ip| (Bind::Ip(ip), None))
        .collect()
}
