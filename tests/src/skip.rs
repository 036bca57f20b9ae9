//! Tests that cannot run here.
//!
//! libtest has no such outcome: a test that returns has passed. So the test appends a line to the
//! file named by `SIDECAR_TEST_SKIPS`, and `cargo xtask test` counts it as skipped.

use std::{env, fs::OpenOptions, io::Write as _};

use sidecar_agent::dataplane::kernel_features;

/// Environment variable with the file to append to; set by `cargo xtask test`.
pub const SKIPS_ENV: &str = "SIDECAR_TEST_SKIPS";

/// Ends the running test as skipped, naming what the machine lacks:
/// `skip!("kernel has no CONFIG_MPTCP")`. Formats like `format!`.
#[macro_export]
macro_rules! skip {
    ($($missing:tt)+) => {{
        fn here() {}
        $crate::skip::record(std::any::type_name_of_val(&here), &format!($($missing)+));
        return $crate::skip::skipped();
    }};
}

/// Skips the running test unless it is root's: most things here cannot be made by others.
#[macro_export]
macro_rules! require_root {
    () => {
        if !$crate::skip::is_root() {
            $crate::skip!("root");
        }
    };
}

/// Whether the kernel has a feature that the agent can do without: a name of `Kernel::ALL`.
#[must_use]
pub fn kernel_has(feature: &str) -> bool {
    kernel_features()[feature]
}

/// What a test can return: nothing, or a result.
pub trait Outcome {
    /// The value of a test that has nothing to say.
    fn nothing() -> Self;
}

impl Outcome for () {
    fn nothing() -> Self {}
}

impl<E> Outcome for Result<(), E> {
    fn nothing() -> Self {
        Ok(())
    }
}

/// What a test returns that was skipped.
#[must_use]
pub fn skipped<T: Outcome>() -> T {
    T::nothing()
}

/// Notes that a test is skipped; `here` is the type name of a function inside it.
///
/// # Panics
/// When the file cannot be written: the test would be counted as passed.
pub fn record(here: &str, missing: &str) {
    let line = line(here, missing);
    eprint!("{line}");
    if let Some(path) = env::var_os(SKIPS_ENV) {
        // One write in append mode: the lines of tests that run at the same time stay whole.
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .and_then(|mut file| file.write_all(line.as_bytes()))
            .unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    }
}

fn line(here: &str, missing: &str) -> String {
    let test = here.strip_suffix("::here").unwrap_or(here);
    format!("SKIPPED {test}: {}\n", missing.replace('\n', " "))
}

/// Whether the effective user is root.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_line_names_the_test() {
        fn here() {}
        assert_eq!(
            super::line(std::any::type_name_of_val(&here), "a\nb"),
            "SKIPPED sidecar_tests::skip::tests::the_line_names_the_test: a b\n"
        );
    }
}
