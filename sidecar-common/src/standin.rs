//! Stand-ins: loopback addresses that each stand for one destination of a workload.
//!
//! A call that is captured for the proxy's outbound listener is led to the stand-in of where it was
//! going. Whoever has the accepted socket knows its destination by the socket's own address then,
//! with nothing remembered for the connection. An address is never given to another destination
//! while the workload is attached: where two destinations would have the same one, the second has
//! none, and its connections are remembered one by one.
//!
//! A stand-in is one of [`SPREAD`] addresses, in turn, as each can take as many connections from one
//! source as there are ports.

use crate::addr::{Addr, Endpoint};

/// 127.64.0.0, host byte order: the first.
const FIRST: u32 = 0x7f40_0000;
/// Bits of a slot: the number of an address' destination.
const SLOT_BITS: u32 = 16;
/// Bits below those.
const SPREAD_BITS: u32 = 3;
/// Addresses for each destination. A power of two.
pub const SPREAD: u32 = 1 << SPREAD_BITS;

/// The slot that a destination has, or shares with others: any number of 16 bits. IPv4 only.
#[inline(always)]
#[must_use]
pub const fn slot(destination: &Endpoint) -> u32 {
    // Fibonacci hashing (Knuth, 6.4): the upper bits are the mixed ones.
    let word = destination.addr.v4() ^ (destination.port as u32).rotate_left(13);
    word.wrapping_mul(0x9e37_79b1) >> (32 - SLOT_BITS)
}

/// One of the addresses of a slot. `any`: which.
#[inline(always)]
#[must_use]
pub const fn address(slot: u32, any: u32) -> Addr {
    let host = FIRST | (slot << SPREAD_BITS) | (any % SPREAD);
    Addr::from_v4(host.to_be())
}

/// The slot of an address; `None`: it stands for nothing.
#[inline(always)]
#[must_use]
pub const fn slot_of(addr: &Addr) -> Option<u32> {
    // Of an IPv6 address the last word may look so.
    if addr.is_v4() {
        slot_of_v4(addr.v4())
    } else {
        None
    }
}

/// The same of a word in network order.
#[inline(always)]
#[must_use]
pub const fn slot_of_v4(word: u32) -> Option<u32> {
    let at = u32::from_be(word) ^ FIRST;
    if at >> (SLOT_BITS + SPREAD_BITS) == 0 {
        Some(at >> SPREAD_BITS)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_tells_its_slot_and_no_other_does() {
        for slot in [0, 1, 0x1234, 0xffff] {
            for any in [0, 7, 8, u32::MAX] {
                let addr = address(slot, any);
                assert!(addr.is_loopback());
                assert_eq!(slot_of(&addr), Some(slot));
            }
        }
        for host in [0x7f00_0001_u32, 0x7f3f_ffff, 0x7f48_0000, 0x0a40_0000] {
            assert_eq!(slot_of(&Addr::from_v4(host.to_be())), None, "{host:x}");
        }
        let v6 = Addr::from_v6([1, 0, 0, address(5, 0).v4()]);
        assert_eq!(slot_of(&v6), None);
    }

    #[test]
    fn destinations_rarely_share_a_slot() {
        let destinations = (0..1000_u32).map(|number| {
            let host = 0x0a60_0000 + number * 3;
            Endpoint::new(Addr::from_v4(host.to_be()), 80 + (number % 7) as u16)
        });
        let mut slots: std::vec::Vec<u32> = destinations.map(|of| slot(&of)).collect();
        slots.sort_unstable();
        slots.dedup();
        // By chance 992 would be left.
        assert!(slots.len() > 970, "{} of 1000", slots.len());
    }
}
