//! When to try again what has failed: soon at first, then ever more seldom.

use std::time::{Duration, Instant};

/// The pause before the next attempt. Each failure doubles it.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    /// The last failure, and the pause after it.
    failed: Option<(Instant, Duration)>,
}

impl Backoff {
    /// Nothing has failed yet; the first pause, and the longest.
    #[must_use]
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            failed: None,
        }
    }

    /// The pause that is left at `now`; zero: to be tried.
    #[must_use]
    pub fn left(&self, now: Instant) -> Duration {
        self.failed.map_or(Duration::ZERO, |(at, pause)| {
            pause.saturating_sub(now.saturating_duration_since(at))
        })
    }

    /// It was tried at `now`, and failed.
    pub fn fail(&mut self, now: Instant) {
        let pause = self
            .failed
            .map_or(self.first, |(_, pause)| (pause * 2).min(self.longest));
        self.failed = Some((now, pause));
    }

    /// It succeeded, or what it depends on has changed.
    pub fn reset(&mut self) {
        self.failed = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let second = Duration::from_secs(1);
        let mut now = Instant::now();
        let mut backoff = Backoff::new(second, 5 * second);
        assert_eq!(backoff.left(now), Duration::ZERO);
        for pause in [1, 2, 4, 5, 5] {
            backoff.fail(now);
            assert_eq!(backoff.left(now), pause * second);
            now += pause * second / 4;
            assert_eq!(backoff.left(now), pause * second * 3 / 4);
            now += pause * second * 3 / 4;
            assert_eq!(backoff.left(now), Duration::ZERO);
            assert_eq!(backoff.left(now + second), Duration::ZERO);
        }
        backoff.reset();
        backoff.fail(now);
        assert_eq!(backoff.left(now), second);
    }
}
