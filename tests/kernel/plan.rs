//! Plans made by hand.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use ipnet::IpNet;
use sidecar_agent::compile::{Outbound, Plan};
use sidecar_common::{
    Endpoint, Path, Reason,
    values::{PlanHeader, Rule},
};

/// The proxy's ports, in plans and for proxies that tests start.
pub const OUTBOUND_PORT: u16 = 15001;
pub const INBOUND_PORT: u16 = 15006;

/// An address and port from its text.
pub fn at(text: &str) -> SocketAddr {
    text.parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"))
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
                outbound_port: OUTBOUND_PORT,
                inbound_port: INBOUND_PORT,
                outbound_default: pass(),
                inbound_default: rule(Path::Pass, Reason::UndeclaredPort),
            },
            outbound: Arc::new(nothing()),
            inbound: BTreeMap::new(),
            inbound_listeners: Vec::new(),
            listen_ports: BTreeSet::new(),
            sidecar: None,
        })
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
        let net: IpNet = net.parse().unwrap_or_else(|error| panic!("{net}: {error}"));
        self.half().prefixes.insert((port, net.trunc()), rule);
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
