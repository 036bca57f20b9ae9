//! One address form for IPv4 and IPv6.

/// An IP address as 16 bytes in network order; IPv4 in its v4-mapped form (`::ffff:a.b.c.d`).
///
/// Kept as four 32-bit words whose *memory* is in network order: that is how the kernel's
/// context structures hand them out (`user_ip4`, `user_ip6[i]`), so no swap is ever needed.
#[repr(C)]
#[derive(Clone, Copy, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[allow(
    clippy::derived_hash_with_manual_eq,
    clippy::derive_ord_xor_partial_ord,
    reason = "equal means the same as it would derived"
)]
pub struct Addr {
    /// Words in memory order; each word's bytes are in network order.
    pub words: [u32; 4],
}

impl PartialEq for Addr {
    /// Derived, this would be a call of `bcmp`, a loop over bytes in a BPF program. Here and below:
    /// one branch instead of four, as the verifier follows every combination of them.
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        let [a, b] = [&self.words, &other.words];
        (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) == 0
    }
}

impl Addr {
    /// `::`, the IPv6 wildcard. In a table: any IPv6 address.
    pub const ANY: Self = Self { words: [0; 4] };
    /// `0.0.0.0` (mapped). In a table: any IPv4 address.
    pub const ANY_V4: Self = Self::from_v4(0);
    /// `127.0.0.1`.
    pub const LOOPBACK_V4: Self = Self::from_v4(0x7f00_0001_u32.to_be());
    /// `::1`.
    pub const LOOPBACK_V6: Self = Self {
        words: [0, 0, 0, 1u32.to_be()],
    };
    /// `127.0.0.6`: where Istio's inbound passthrough connections come from.
    pub const PASSTHROUGH_V4: Self = Self::from_v4(0x7f00_0006_u32.to_be());
    /// `::6`: the same by IPv6.
    pub const PASSTHROUGH_V6: Self = Self {
        words: [0, 0, 0, 6u32.to_be()],
    };
    /// Prefix length of the v4-mapped range `::ffff:0:0/96`.
    pub const V4_PREFIX: u32 = 96;

    const MAPPED: u32 = 0xffff_u32.to_be();

    /// From an IPv4 address whose memory is in network order (`user_ip4`, `local_ip4`, ...).
    #[inline(always)]
    #[must_use]
    pub const fn from_v4(word: u32) -> Self {
        Self {
            words: [0, 0, Self::MAPPED, word],
        }
    }

    /// From four IPv6 words whose memory is in network order.
    #[inline(always)]
    #[must_use]
    pub const fn from_v6(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// Whether this is an IPv4 address (in its mapped form).
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        self.words[0] | self.words[1] | (self.words[2] ^ Self::MAPPED) == 0
    }

    /// The IPv4 address as a word in network order. Meaningful only if [`Self::is_v4`].
    #[inline(always)]
    #[must_use]
    pub const fn v4(&self) -> u32 {
        self.words[3]
    }

    /// Whether this is in 127.0.0.0/8, or `::1`.
    #[inline(always)]
    #[must_use]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            u32::from_be(self.words[3]) >> 24 == 127
        } else {
            self.words[0] | self.words[1] | self.words[2] | (self.words[3] ^ 1u32.to_be()) == 0
        }
    }

    /// Whether this is a wildcard address, `0.0.0.0` or `::`.
    #[inline(always)]
    #[must_use]
    pub const fn is_wildcard(&self) -> bool {
        let third = self.words[2] as u64;
        // Zero if either factor is.
        let mapped_or_zero = third * (third ^ Self::MAPPED as u64);
        (self.words[0] | self.words[1] | self.words[3]) as u64 | mapped_or_zero == 0
    }

    /// Whether this is a multicast address, 224.0.0.0/4 or `ff00::/8`.
    #[inline(always)]
    #[must_use]
    pub const fn is_multicast(&self) -> bool {
        if self.is_v4() {
            u32::from_be(self.words[3]) >> 28 == 14
        } else {
            u32::from_be(self.words[0]) >> 24 == 0xff
        }
    }

    /// The loopback address of this address' family: [`Self::LOOPBACK_V4`] or
    /// [`Self::LOOPBACK_V6`].
    #[inline(always)]
    #[must_use]
    pub const fn loopback(&self) -> Self {
        if self.is_v4() {
            Self::LOOPBACK_V4
        } else {
            Self::LOOPBACK_V6
        }
    }

    /// The wildcard address of this address' family: [`Self::ANY_V4`] or [`Self::ANY`].
    #[inline(always)]
    #[must_use]
    pub const fn wildcard(&self) -> Self {
        if self.is_v4() {
            Self::ANY_V4
        } else {
            Self::ANY
        }
    }
}

/// An address and a TCP port (native byte order).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Endpoint {
    /// The address.
    pub addr: Addr,
    /// The port, native byte order.
    pub port: u16,
    /// Always zero: keeps the layout free of implicit padding.
    pub pad: u16,
}

impl Endpoint {
    /// An endpoint; `port` in native byte order.
    #[inline(always)]
    #[must_use]
    pub const fn new(addr: Addr, port: u16) -> Self {
        Self { addr, port, pad: 0 }
    }
}
