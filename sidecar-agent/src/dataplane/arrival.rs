//! A connection to a workload that its program decides, without there being one: the kernel runs the
//! attached program on its addresses.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd as _,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};

use super::{
    compare::InForce,
    netns::Netns,
    network,
    sys::{self, run::Looked},
};

/// What has become of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrived {
    /// It is given to the socket that listens here.
    Given(SocketAddr),
    /// It is given to a socket of which the kernel does not tell.
    GivenToOne,
    /// It goes where it was going.
    Passed,
    /// It is refused.
    Refused,
}

/// Where it comes from: an address, nobody's if absent, and a port by which the decision is known
/// among others.
#[must_use]
pub fn source(from: Option<IpAddr>, destination: SocketAddr) -> SocketAddr {
    let nobody = match destination {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let some = now.map_or(0, |now| now.subsec_nanos() % 60_000);
    // Never 0, by which the programs ask whether somebody listens.
    let port = u16::try_from(some + 1024).unwrap_or(u16::MAX);
    SocketAddr::new(from.unwrap_or(nobody), port)
}

/// Has the workload's program decide it.
///
/// # Errors
/// If the program is not attached to the namespace, or the kernel does not run it.
pub fn arrive(
    in_force: &InForce,
    netns: &Netns,
    source: SocketAddr,
    destination: SocketAddr,
) -> Result<Arrived> {
    let program = in_force.inbound_program(netns)?;
    let looked = sys::run::look_up(program.as_fd(), source, destination)
        .context("running the program that decides inbound connections (BPF_PROG_TEST_RUN)")?;
    Ok(match looked {
        Looked::Refused => Arrived::Refused,
        Looked::Passed => Arrived::Passed,
        Looked::Shared => Arrived::GivenToOne,
        Looked::Given(cookie) => {
            let listener = network::listener(netns, cookie)?;
            listener.map_or(Arrived::GivenToOne, Arrived::Given)
        }
    })
}
