//! The inputs on which a fuzz target once failed, and some that try the checks themselves.

use std::{fs, path::Path};

use sidecar_fuzz_checks::{grammars, model};

/// Runs a check on every file of a directory below `fuzz/regressions`.
fn replay(dir: &str, check: fn(&str)) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../regressions")
        .join(dir);
    let mut inputs = 0;
    for entry in fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        // Shown when the check fails.
        println!("{}", path.display());
        let input = fs::read(&path).unwrap();
        // As the fuzz targets: up to where it is UTF-8 no more.
        check(input.utf8_chunks().next().map_or("", |chunk| chunk.valid()));
        inputs += 1;
    }
    assert!(inputs > 0, "no input in {}", dir.display());
}

#[test]
fn model() {
    replay("model", model::check);
}

#[test]
fn grammars() {
    replay("grammars", grammars::check);
}
