//! Builds the BPF programs, so that a plain `cargo build` makes a complete agent.

use std::process::ExitCode;

fn main() -> ExitCode {
    match ebpf_build::build() {
        Ok(()) => ExitCode::SUCCESS,
        // Not by returning it: the compiler's errors are not to be followed by a backtrace.
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
