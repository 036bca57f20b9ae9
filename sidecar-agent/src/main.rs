//! The `sidecar-agent` binary.

fn main() {}
