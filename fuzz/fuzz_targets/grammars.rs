//! Any text, as hosts, endpoints, addresses, annotations and cgroup paths.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sidecar_fuzz_checks::grammars;

fuzz_target!(|text: &str| grammars::check(text));
