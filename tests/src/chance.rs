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
    let seed = match env::var(SEED_ENV) {
        Ok(seed) => {
            let parsed = seed.parse();
            parsed.with_context(|| format!("{SEED_ENV}={seed} is no number"))?
        }
        Err(_) => fastrand::u64(..),
    };
    println!("{SEED_ENV}={seed}");
    Ok(Rng::with_seed(seed))
}
