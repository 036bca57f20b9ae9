//! Resources of the right shape with any contents.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sidecar_fuzz_checks::{model, resources::Resources};

fuzz_target!(|resources: Resources| model::check(&resources.to_string()));
