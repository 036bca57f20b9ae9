//! Chance that can be repeated.

use std::env;

use anyhow::Context as _;
use fastrand::Rng;

/// The environment variable that repeats a run.
const SEED_ENV: &str = "SIDECAR_TEST_SEED";

/// A generator whose seed is printed, for a test that fails shows it; the environment variable
/// `SIDECAR_TEST_SEED` sets it.
///
/// # Errors
/// When the variable holds no number.
pub fn seeded() -> anyhow::Result<Rng> {
    seeded_or(fastrand::u64(..))
}

/// The same, with a seed of the test's own unless the environment variable sets one.
///
/// # Errors
/// As [`seeded`].
pub fn seeded_or(default: u64) -> anyhow::Result<Rng> {
    let seed = match env::var(SEED_ENV) {
        Ok(seed) => {
            let parsed = seed.parse();
            parsed.with_context(|| format!("{SEED_ENV}={seed} is no number"))?
        }
        Err(_) => default,
    };
    println!("{SEED_ENV}={seed}");
    Ok(Rng::with_seed(seed))
}
