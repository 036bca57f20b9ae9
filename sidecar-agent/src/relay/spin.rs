//! Whether a thread looks for events for a moment before it sleeps.
//!
//! To be woken costs whoever sends: an interrupt to the thread's processor where that is idle, and
//! in a virtual machine much more than to look again. So a thread looks where answers have come
//! soon, as KVM does before it halts a processor.
//!
//! Measured: round trips and new connections gain by it. A stream loses: while the thread sleeps,
//! more of it comes together, which then is passed on in one piece. So only events from another
//! side than the last one count.

use std::time::Duration;

use super::token::Kind;

/// How long a thread looks.
const LOOK: Duration = Duration::from_micros(20);
/// Whoever looks in vain, as where both ends need this very processor, sleeps at once the next
/// time, the next three times, and at last so many times.
const MOST_SKIPPED: u32 = 63;

/// What is known of the pauses between events.
#[derive(Debug, Default)]
pub(super) struct Spin {
    /// The last pause was short.
    soon: bool,
    /// So many more short pauses are slept through.
    skip: u32,
    /// So many were, after it was looked in vain the last time.
    skipped: u32,
    /// Whose event was served last.
    last: Option<Kind>,
}

impl Spin {
    /// How long to look now; zero: sleep at once.
    pub(super) fn limit(&self) -> Duration {
        if self.soon && self.skip == 0 {
            LOOK
        } else {
            Duration::ZERO
        }
    }

    /// Events have come, the first and the last of these kinds, so long after those before were
    /// served.
    pub(super) fn came(&mut self, first: Kind, last: Kind, waited: Duration) {
        let looked = !self.limit().is_zero();
        self.soon = waited <= LOOK && self.last != Some(first);
        self.last = Some(last);
        if !looked {
            self.skip = self.skip.saturating_sub(1);
        } else if waited > LOOK {
            self.skipped = (self.skipped * 2 + 1).min(MOST_SKIPPED);
            self.skip = self.skipped;
        } else {
            self.skipped = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_micros(15);
    const LATE: Duration = Duration::from_micros(35);

    fn answered(spin: &mut Spin, waited: Duration) -> bool {
        spin.came(Kind::Client, Kind::Target, waited);
        !spin.limit().is_zero()
    }

    #[test]
    fn answers_that_come_soon_are_looked_for() {
        let mut spin = Spin::default();
        assert_eq!(spin.limit(), Duration::ZERO);
        assert!(answered(&mut spin, SOON));
        assert!(answered(&mut spin, SOON));
        assert!(!answered(&mut spin, Duration::from_millis(1)));
    }

    #[test]
    fn a_stream_is_not_looked_for() {
        let mut spin = Spin::default();
        assert!(answered(&mut spin, SOON));
        for _ in 0..3 {
            spin.came(Kind::Target, Kind::Target, SOON);
            assert_eq!(spin.limit(), Duration::ZERO);
        }
    }

    #[test]
    fn who_looks_in_vain_looks_ever_more_seldom() {
        let mut spin = Spin::default();
        let mut looks = 0;
        for _ in 0..1000 {
            // Whoever is to answer gets the processor only once the thread sleeps.
            let looking = !spin.limit().is_zero();
            looks += u32::from(looking);
            answered(&mut spin, if looking { LATE } else { SOON });
        }
        assert!((10..30).contains(&looks), "{looks}");
        while spin.limit().is_zero() {
            answered(&mut spin, SOON);
        }
        assert!(answered(&mut spin, SOON));
        assert_eq!(spin.skipped, 0);
    }
}
