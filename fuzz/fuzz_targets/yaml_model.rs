//! Any text, as a file of resources.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sidecar_fuzz_checks::model;

fuzz_target!(|text: &str| model::check(text));
