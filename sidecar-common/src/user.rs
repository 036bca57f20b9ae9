//! What only user space needs of the shared types.
#![allow(
    unsafe_code,
    reason = "aya::Pod is an unsafe marker trait; every type here is plain data"
)]

use core::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::{
    accelerate::{Ends, Hop, Offsets},
    addr::{Addr, Endpoint},
    decide::{Direction, Transport},
    event::Event,
    kernel::Kernel,
    keys::{
        BackendKey, OwnerKey, PrefixKey, RouteKey, RuleKey, Slot, Tuple, WorkloadEndpoint,
        WorkloadInterface, WorkloadPort,
    },
    reason::{Path, Reason},
    values::{Identity, Meta, Original, PlanHeader, Route, Rule},
};

macro_rules! pod {
    ($($type:ty),+) => {$(
        // SAFETY: repr(C), integers only, no padding (sizes asserted beside the definitions),
        // every bit pattern valid.
        unsafe impl aya::Pod for $type {}
    )+};
}
pod!(
    Addr,
    Endpoint,
    RuleKey,
    PrefixKey,
    BackendKey,
    WorkloadEndpoint,
    WorkloadPort,
    Tuple,
    Slot,
    OwnerKey,
    WorkloadInterface,
    RouteKey,
    Route,
    Rule,
    PlanHeader,
    Identity,
    Kernel,
    Meta,
    Original,
    Event,
    Ends,
    Hop,
    Offsets
);

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        let bytes = match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let mut words = [0; 4];
        for (word, chunk) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *word = u32::from_ne_bytes(*chunk);
        }
        Self { words }
    }
}

impl From<Addr> for IpAddr {
    /// v4-mapped addresses become IPv4.
    fn from(addr: Addr) -> Self {
        let mut bytes = [0; 16];
        for (chunk, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(addr.words) {
            *chunk = word.to_ne_bytes();
        }
        Ipv6Addr::from(bytes).to_canonical()
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(addr: SocketAddr) -> Self {
        Self::new(addr.ip().into(), addr.port())
    }
}

impl From<Endpoint> for SocketAddr {
    fn from(endpoint: Endpoint) -> Self {
        Self::new(endpoint.addr.into(), endpoint.port)
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::from(*self).fmt(f)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl serde::Serialize for Path {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl serde::Serialize for Reason {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl Reason {
    /// The reason with this number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

impl Path {
    /// The path with this number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

impl Direction {
    /// The direction with this number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Outbound, Self::Inbound]
            .get(usize::from(number))
            .copied()
    }
}

impl Transport {
    /// The transport with this number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Tcp, Self::Udp].get(usize::from(number)).copied()
    }
}
