//! The first process of a virtual machine of `cargo xtask vm`.
//!
//! As process 1 it mounts what a system has, loads the modules, starts itself again to run the
//! tests, and does what only process 1 can: it reaps whom nobody else waits for. When the tests
//! have ended it restarts the machine, which qemu takes for the end.

use std::process::ExitCode;

mod modules;
mod mounts;
mod one;
mod suites;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        one::run();
    }
    match suites::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("init: {error:#}");
            ExitCode::FAILURE
        }
    }
}
