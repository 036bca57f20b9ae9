//! What epoll hands back with an event: which record, and that it is still the same one.

use rustix::event::epoll::EventData;

/// 64 bits: generation (32), slot (30), kind (2).
///
/// The generation tells a record from a later one in the same slot, for events and timers that
/// outlive it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Token(u64);

/// What a [`Token`] stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The worker's own eventfd: commands wait.
    Wake,
    /// A listening socket.
    Listener,
    /// The accepted socket of a connection.
    Client,
    /// The dialed socket of a connection.
    Target,
}

/// Slots a token can name; far beyond what descriptors allow.
pub(super) const MAX_SLOTS: usize = 1 << 30;

impl Token {
    pub(super) fn new(kind: Kind, slot: usize, generation: u32) -> Self {
        let slot = (slot & (MAX_SLOTS - 1)) as u64;
        Self(u64::from(generation) << 32 | slot << 2 | kind as u64)
    }

    pub(super) fn of(data: EventData) -> Self {
        Self(data.u64())
    }

    pub(super) fn data(self) -> EventData {
        EventData::new_u64(self.0)
    }

    pub(super) fn kind(self) -> Kind {
        match self.0 & 3 {
            0 => Kind::Wake,
            1 => Kind::Listener,
            2 => Kind::Client,
            _ => Kind::Target,
        }
    }

    pub(super) fn slot(self) -> usize {
        usize::try_from(self.0 >> 2).unwrap_or(usize::MAX) & (MAX_SLOTS - 1)
    }

    pub(super) fn generation(self) -> u32 {
        u32::try_from(self.0 >> 32).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        for kind in [Kind::Wake, Kind::Listener, Kind::Client, Kind::Target] {
            for slot in [0, 1, 12345, MAX_SLOTS - 1] {
                for generation in [0, 1, u32::MAX] {
                    let token = Token::of(Token::new(kind, slot, generation).data());
                    assert_eq!(
                        (token.kind(), token.slot(), token.generation()),
                        (kind, slot, generation)
                    );
                }
            }
        }
    }
}
