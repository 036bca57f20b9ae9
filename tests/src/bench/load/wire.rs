//! What a load client is told, and what it answers: one JSON object a line.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// What a load client is told to do.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Order {
    /// Connections one after the other. With a byte each way the client closes first, without the
    /// server does.
    Connect {
        /// Where to.
        address: SocketAddr,
        /// How many.
        times: u32,
        /// With a byte each way.
        exchange: bool,
    },
    /// Connections that stay, in place of those there are.
    Open {
        /// Where to.
        address: SocketAddr,
        /// How many.
        connections: u32,
    },
    /// Over each open connection a message there and one back, again and again.
    RoundTrips {
        /// Bytes of a message.
        size: u32,
        /// How long.
        millis: u32,
    },
    /// Over each open connection an HTTP request and its response, again and again.
    Requests {
        /// How long.
        millis: u32,
    },
    /// Over each open connection messages in one direction, as many as fit.
    Stream {
        /// Bytes of each write.
        size: u32,
        /// Bytes for each of which the server answers one; a multiple of `size`.
        unit: u32,
        /// How long. What was begun is ended.
        millis: u32,
    },
}

/// What was done.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Done {
    /// How long it took, in ns.
    pub nanos: u64,
    /// Connections, round trips, or bytes of a stream that have arrived.
    pub operations: u64,
}

/// The bytes of a stream for each of which the server answers one: enough that answers play no part,
/// and few enough that the last ones do not take long.
#[must_use]
pub fn unit(size: u32) -> u32 {
    let many = size.saturating_mul(64).clamp(256, 1 << 20);
    many.max(size.saturating_mul(4)) / size * size
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_unit_is_some_whole_messages() {
        for size in [1, 1000, 1024, 16384, 65536, 262_144] {
            let unit = super::unit(size);
            assert!(unit.is_multiple_of(size) && unit / size >= 4, "{size}");
            assert!((256..=1 << 20).contains(&unit), "{size}: {unit}");
        }
    }
}
