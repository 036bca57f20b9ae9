//! What has to be delivered in a workload's namespace although it is addressed to others.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use rtnetlink::packet_route::{
    AddressFamily, IpProtocol,
    rule::{RuleAction, RuleAttribute, RuleMessage},
};
use sidecar_common::values::{Interface, PlanHeader};

use super::setup::{PRIORITY, PROXY_MARK, TABLE};
use crate::compile::{EVERYWHERE, Network, Plan, plan::is_meant};

/// What is to be delivered in the namespace, wherever it is addressed to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Steering {
    /// TCP that arrives by this interface: to this network, or all of a family.
    From {
        /// The interface's name; as declared, it may end in `+` (see [`Steering::among`]).
        interface: String,
        /// The network.
        to: IpNet,
    },
    /// What the applications answer to a transparent proxy.
    ToTransparentProxy {
        /// By IPv4, or by IPv6.
        v4: bool,
    },
}

impl Steering {
    /// What a plan declares.
    pub fn declared(plan: &Plan) -> BTreeSet<Self> {
        let flags = plan.header.flags;
        let has_v6 = flags & PlanHeader::IPV6 != 0;
        let everything = EVERYWHERE.iter().copied();
        let ranges: Vec<IpNet> = if flags & PlanHeader::VIRTUAL_ALL != 0 {
            everything.collect()
        } else {
            plan.virtual_ranges.iter().copied().collect()
        };
        let is_on = |v4: bool| v4 || has_v6;
        let virtuals = plan
            .interfaces
            .iter()
            .filter(|(_, flags)| **flags & Interface::VIRTUAL != 0);
        let from = virtuals.flat_map(|(name, _)| {
            ranges
                .iter()
                .filter(|net| is_on(net.addr().is_ipv4()))
                .map(|net| Self::From {
                    interface: name.clone(),
                    to: *net,
                })
        });
        let is_transparent = flags & PlanHeader::TPROXY != 0;
        let answers = [true, false]
            .into_iter()
            .filter(|v4| is_transparent && is_on(*v4))
            .map(|v4| Self::ToTransparentProxy { v4 });
        from.chain(answers).collect()
    }

    /// Whether this, as declared, means whatever interfaces exist: routing rules know no wildcards.
    pub fn depends_on_names(&self) -> bool {
        matches!(self, Self::From { interface, .. } if interface.ends_with('+'))
    }

    /// What was declared, where these interfaces exist. Never `lo`, by which everything arrives that
    /// the workload itself sends, in the words of a routing rule.
    pub fn among(declared: &BTreeSet<Self>, existing: &BTreeMap<String, u32>) -> BTreeSet<Self> {
        let each = declared.iter().flat_map(|steering| match steering {
            Self::From { interface, to } if steering.depends_on_names() => {
                let meant = existing.keys().filter(|name| is_meant(interface, name));
                let from = meant.map(|name| Self::From {
                    interface: name.clone(),
                    to: *to,
                });
                from.collect()
            }
            // The rule of an interface that does not exist waits for it.
            other => vec![other.clone()],
        });
        let is_lo = |steering: &Self| matches!(steering, Self::From { interface, .. } if interface == Network::LOOPBACK);
        each.filter(|steering| !is_lo(steering)).collect()
    }

    /// Whether it is about IPv4.
    pub(super) fn is_v4(&self) -> bool {
        match self {
            Self::From { to, .. } => to.addr().is_ipv4(),
            Self::ToTransparentProxy { v4 } => *v4,
        }
    }

    /// What a routing rule steers, if it is the agent's.
    pub(super) fn of(rule: &RuleMessage) -> Option<Self> {
        let mut priority = None;
        let mut interface = None;
        let mut to = None;
        let mut mark = None;
        for attribute in &rule.attributes {
            match attribute {
                RuleAttribute::Priority(found) => priority = Some(*found),
                RuleAttribute::Iifname(found) => interface = Some(found.clone()),
                RuleAttribute::Destination(found) => to = Some(*found),
                RuleAttribute::FwMark(found) => mark = Some(*found),
                _ => {}
            }
        }
        if rule.header.table != TABLE {
            return None;
        }
        let v4 = rule.header.family == AddressFamily::Inet;
        let anywhere = EVERYWHERE
            .iter()
            .find(|net| net.addr().is_ipv4() == v4)?
            .addr();
        let steering = match (interface, mark) {
            (Some(interface), _) => Self::From {
                interface,
                to: IpNet::new(to.unwrap_or(anywhere), rule.header.dst_len).ok()?,
            },
            (None, Some(PROXY_MARK)) => Self::ToTransparentProxy { v4 },
            _ => return None,
        };
        (priority == Some(steering.priority())).then_some(steering)
    }

    /// The kernel takes a rule without a network for the same as one with a network, where
    /// everything else is: when it is added, and when it is deleted.
    fn priority(&self) -> u32 {
        match self {
            Self::From { to, .. } if to.prefix_len() == 0 => PRIORITY + 1,
            Self::From { .. } | Self::ToTransparentProxy { .. } => PRIORITY,
        }
    }

    /// The routing rule.
    pub(super) fn message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = family(self.is_v4());
        message.header.table = TABLE;
        message.header.action = RuleAction::ToTable;
        message.attributes = vec![RuleAttribute::Priority(self.priority())];
        match self {
            Self::From { interface, to } => {
                message
                    .attributes
                    .push(RuleAttribute::Iifname(interface.clone()));
                message
                    .attributes
                    .push(RuleAttribute::IpProtocol(IpProtocol::Tcp));
                if to.prefix_len() > 0 {
                    message.header.dst_len = to.prefix_len();
                    message
                        .attributes
                        .push(RuleAttribute::Destination(to.network()));
                }
            }
            Self::ToTransparentProxy { .. } => {
                message.attributes.push(RuleAttribute::FwMark(PROXY_MARK));
            }
        }
        message
    }
}

fn family(v4: bool) -> AddressFamily {
    if v4 {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}
