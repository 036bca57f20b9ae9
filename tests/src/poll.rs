//! Waiting for a condition.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{anyhow, bail};

/// Long enough for anything that works, on a machine that is busy with other tests.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Pause between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(5);

/// Looks at a condition until it yields a value.
///
/// # Errors
/// When the deadline has passed; `what` says what was waited for.
pub fn poll<T>(
    deadline: Duration,
    what: &str,
    mut condition: impl FnMut() -> Option<T>,
) -> anyhow::Result<T> {
    poll_result(deadline, what, || {
        condition().ok_or_else(|| anyhow!("not yet"))
    })
}

/// Tries an operation until it succeeds.
///
/// # Errors
/// When the deadline has passed: the last error.
pub fn poll_result<T>(
    deadline: Duration,
    what: &str,
    mut operation: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let end = Instant::now() + deadline;
    loop {
        let error = match operation() {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if Instant::now() >= end {
            bail!("waited {deadline:?} in vain for {what}: {error:#}");
        }
        thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_until_the_condition_holds() {
        let mut looks = 0;
        let seen = poll(DEADLINE, "three looks", || {
            looks += 1;
            (looks == 3).then_some(looks)
        });
        assert_eq!(seen.unwrap(), 3);
    }

    #[test]
    fn gives_up_at_the_deadline_and_says_on_what() {
        let error = poll::<()>(Duration::ZERO, "Godot", || None).unwrap_err();
        assert!(error.to_string().contains("in vain for Godot"), "{error}");
    }
}
