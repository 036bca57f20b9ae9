//! The `sidecar-agent` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    sidecar_agent::cli::main()
}
