//! What is tried.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use anyhow::bail;
use sidecar_agent::conformance::iptables::cases::{Case, Direction, Protocol};

use crate::apps::visit::{Transport, User};

/// The interfaces of a [`Pod`](super::Pod).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "named after what they are")]
pub enum Interface {
    Eth0,
    Net1,
}

/// Where a connection comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum From {
    /// The pod: from a process of this user.
    Inside(User),
    /// What is at the other end of an interface.
    Through(Interface),
}

/// A connection or datagram to be made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attempt {
    /// Where it comes from.
    pub from: From,
    /// How it travels.
    pub transport: Transport,
    /// The address it is bound to first.
    pub source: Option<IpAddr>,
    /// Where it is going.
    pub to: SocketAddr,
}

impl TryFrom<&Case> for Attempt {
    type Error = anyhow::Error;

    fn try_from(case: &Case) -> anyhow::Result<Self> {
        let from = match (case.direction, case.in_interface.as_deref()) {
            (Direction::Outbound, None) => From::Inside(User {
                uid: case.uid,
                gid: case.gid,
                groups: case.supplementary_groups.clone(),
            }),
            (Direction::Inbound, Some("eth0")) => From::Through(Interface::Eth0),
            (Direction::Inbound, Some("net1")) => From::Through(Interface::Net1),
            (direction, interface) => {
                bail!("{}: {direction:?} by way of {interface:?}", case.id)
            }
        };
        Ok(Self {
            from,
            transport: match case.protocol {
                Protocol::Tcp => Transport::Tcp,
                Protocol::Udp => Transport::Udp,
            },
            source: case.src,
            to: SocketAddr::new(case.dst, case.dport),
        })
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} to {}", self.transport, self.to)?;
        match &self.from {
            From::Inside(User { uid, gid, groups }) => {
                write!(f, " from the pod as {uid}:{gid}")?;
                if !groups.is_empty() {
                    write!(f, ", also in {groups:?}")?;
                }
            }
            From::Through(Interface::Eth0) => write!(f, " through eth0")?,
            From::Through(Interface::Net1) => write!(f, " through net1")?,
        }
        if let Some(source) = self.source {
            write!(f, ", bound to {source}")?;
        }
        Ok(())
    }
}
