//! Selection, visibility, compiled tables and the reader of texts, against a second and naive
//! implementation and against themselves, in random worlds.

mod decisions;
mod determinism;
mod generate;
mod incremental;
mod naive;
mod resolving;
mod subject;
mod texts;

use proptest::prelude::*;

/// Cases per property: few by default, so that the whole is quick; `PROPTEST_CASES` asks for more.
fn config(cases: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|n| n.parse().ok());
    ProptestConfig {
        cases: asked.unwrap_or(cases),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}
