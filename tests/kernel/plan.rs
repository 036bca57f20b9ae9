//! Plans made by hand.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use ipnet::IpNet;
use sidecar_agent::compile::{Outbound, Plan};
use sidecar_common::{
    Addr, Endpoint, Path, Reason,
    keys::OwnerKey,
    values::{Interface, PlanHeader, Rule},
};

/// The proxy's ports, in plans and for proxies that tests start.
pub const OUTBOUND_PORT: u16 = 15001;
pub const INBOUND_PORT: u16 = 15006;
pub const TUNNEL_PORT: u16 = 15008;
pub const DNS_PORT: u16 = 15053;
/// Who the proxy is: its uid, and its gid.
pub const PROXY_UID: u32 = 1337;

/// An address and port from its text.
pub fn at(text: &str) -> SocketAddr {
    text.parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// A network from its text.
fn network(text: &str) -> IpNet {
    let net: IpNet = text
        .parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"));
    net.trunc()
}

/// A rule that sends connections to one target.
pub fn direct(target: &str) -> Rule {
    Rule {
        backends: 1,
        target: at(target).into(),
        ..rule(Path::Direct, Reason::EgressService)
    }
}

/// A rule that refuses connections.
pub fn deny() -> Rule {
    rule(Path::Deny, Reason::RegistryOnly)
}

/// A rule that lets connections pass.
pub fn pass() -> Rule {
    rule(Path::Pass, Reason::AllowAny)
}

/// A rule that sends connections to the proxy.
pub fn proxy() -> Rule {
    rule(Path::Proxy, Reason::CaptureAll)
}

/// A rule that sends connections to the relay.
pub fn relay() -> Rule {
    Rule {
        listener: 7,
        ..rule(Path::Relay, Reason::EgressListener)
    }
}

/// The same rule for all but the workload's calls to itself.
pub fn exempting_self(rule: Rule) -> Rule {
    Rule {
        flags: rule.flags | Rule::EXEMPT_SELF,
        ..rule
    }
}

pub fn rule(path: Path, reason: Reason) -> Rule {
    Rule::new(path, reason)
}

/// A plan in the making. Without rules everything passes: outbound for [`Reason::AllowAny`],
/// inbound for [`Reason::UndeclaredPort`].
#[derive(Clone)]
pub struct Planner(Plan);

impl Planner {
    pub fn new() -> Self {
        Self(Plan {
            header: PlanHeader {
                tables: 0,
                flags: 0,
                outbound_port: OUTBOUND_PORT,
                inbound_port: INBOUND_PORT,
                tunnel_port: TUNNEL_PORT,
                dns_port: 0,
                proxy_uid: PROXY_UID,
                proxy_gid: PROXY_UID,
                loopback: Addr::LOOPBACK_V4.v4(),
                loopback_mask: u32::MAX,
                outbound_default: pass(),
                inbound_default: rule(Path::Pass, Reason::UndeclaredPort),
            },
            outbound: Arc::new(nothing()),
            inbound: BTreeMap::new(),
            inbound_listeners: Vec::new(),
            listen_ports: BTreeSet::new(),
            owners: BTreeSet::new(),
            interfaces: BTreeMap::new(),
            virtual_ranges: BTreeSet::new(),
            sidecar: None,
        })
    }

    /// The workload has a proxy, which is known by its uid and gid, and IPv6 is captured.
    pub fn proxied(self) -> Self {
        self.flags(PlanHeader::PROXIED | PlanHeader::IPV6)
            .listens(OUTBOUND_PORT)
            .listens(INBOUND_PORT)
    }

    /// More of `PlanHeader::PROXIED` and so on.
    pub fn flags(mut self, flags: u32) -> Self {
        self.0.header.flags |= flags;
        self
    }

    /// A user or group in a role of `OwnerKey`; the plan's flags tell what it is good for.
    pub fn owner(mut self, role: u32, id: u32) -> Self {
        self.0.header.tables |= match role {
            OwnerKey::PROXY_UID => PlanHeader::HAS_PROXY_UIDS,
            OwnerKey::PROXY_GID => PlanHeader::HAS_PROXY_GIDS,
            _ => 0,
        };
        self.0.owners.insert((role, id));
        self
    }

    /// An interface that is `Interface::EXCLUDED`, or another one.
    pub fn interface(mut self, name: &str, flags: u32) -> Self {
        if flags & Interface::EXCLUDED != 0 {
            self = self.flags(PlanHeader::EXCLUDED_INTERFACES);
        }
        if flags & Interface::VIRTUAL != 0 {
            self = self.flags(PlanHeader::VIRTUAL_INTERFACES);
        }
        self.0.interfaces.insert(name.to_owned(), flags);
        self
    }

    /// A network that is captured where it is called by a virtual interface, if not all are.
    pub fn virtual_range(mut self, net: &str) -> Self {
        self.0.virtual_ranges.insert(network(net));
        self
    }

    /// DNS to these networks is the proxy's.
    pub fn dns(mut self, nets: &[&str]) -> Self {
        self.0.header.dns_port = DNS_PORT;
        for net in nets {
            self = self.prefix(53, net, rule(Path::Proxy, Reason::Dns));
        }
        self
    }

    /// An outbound rule for one destination.
    pub fn outbound(mut self, destination: &str, rule: Rule) -> Self {
        self.0.header.tables |= PlanHeader::HAS_OUTBOUND_EXACT;
        self.half().exact.insert(at(destination).into(), rule);
        self
    }

    /// An outbound rule for a network; port 0: any port.
    pub fn prefix(mut self, port: u16, net: &str, rule: Rule) -> Self {
        self.0.header.tables |= if port == 0 {
            PlanHeader::HAS_OUTBOUND_PREFIX
        } else {
            PlanHeader::HAS_OUTBOUND_PORT_PREFIX
        };
        self.half().prefixes.insert((port, network(net)), rule);
        self
    }

    /// What holds outbound where no rule does.
    pub fn outbound_default(mut self, rule: Rule) -> Self {
        self.0.header.outbound_default = rule;
        self
    }

    /// An inbound rule for one local address, or for all of a family (a wildcard).
    pub fn inbound(mut self, local: &str, rule: Rule) -> Self {
        let local = Endpoint::from(at(local));
        self.0.header.tables |= if local.addr == local.addr.wildcard() {
            PlanHeader::HAS_INBOUND_PORT
        } else {
            PlanHeader::HAS_INBOUND_EXACT
        };
        self.0.inbound.insert(local, rule);
        self
    }

    /// What holds inbound where no rule does.
    pub fn inbound_default(mut self, rule: Rule) -> Self {
        self.0.header.inbound_default = rule;
        self
    }

    /// A group of backends, for [`balanced`].
    pub fn group(mut self, backends: &[&str]) -> Self {
        self.half()
            .backends
            .push(backends.iter().map(|backend| at(backend).into()).collect());
        self
    }

    /// A listening socket on this port may be given connections.
    pub fn listens(mut self, port: u16) -> Self {
        self.0.listen_ports.insert(port);
        self
    }

    /// The outbound half; its digest is brought up to date at the end.
    fn half(&mut self) -> &mut Outbound {
        Arc::make_mut(&mut self.0.outbound)
    }

    pub fn build(mut self) -> Plan {
        let Outbound {
            default,
            exact,
            prefixes,
            backends,
            listeners,
            digest: _,
        } = std::mem::replace(self.half(), nothing());
        *self.half() = Outbound::new(default, exact, prefixes, backends, listeners);
        self.0
    }
}

/// An outbound half without rules.
fn nothing() -> Outbound {
    Outbound::new(
        pass(),
        BTreeMap::new(),
        BTreeMap::new(),
        Vec::new(),
        Vec::new(),
    )
}

/// A rule that sends connections to a group of so many backends.
pub fn balanced(group: u32, backends: u32) -> Rule {
    Rule {
        group,
        backends,
        ..rule(Path::Direct, Reason::EgressService)
    }
}
