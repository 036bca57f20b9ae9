//! Building what runs in virtual machines.

use std::path::PathBuf;

use crate::{
    artifacts::{Built, build, static_program},
    cargo,
};

/// The package of the init.
const INIT: &str = "sidecar-vm-init";

/// The programs that tests run, and the runner of the test vectors.
const PROGRAMS: [&str; 3] = ["sidecar-agent", "app", "conformance"];

/// Builds the tests named, and the programs that they run.
///
/// # Errors
/// When something does not compile.
pub fn tests(names: &[&str]) -> anyhow::Result<Built> {
    let mut built = Vec::new();
    // As `cargo xtask test` does it: together they would be built with other features.
    for package in ["sidecar-tests", "sidecar-agent"] {
        built.extend(build(&mut cargo::cargo(&[
            "build", "--bins", "-p", package,
        ]))?);
    }
    built.retain(|(name, _)| PROGRAMS.contains(&name.as_str()));
    for name in names {
        let mut command = cargo::cargo(&["test", "--no-run", "-p", "sidecar-tests", "--test"]);
        // Cargo tells of the programs of the package, too.
        let tests = build(command.arg(name))?.into_iter();
        built.extend(tests.filter(|(built, _)| built == name));
    }
    Ok(built.into())
}

/// Builds the init, which is static: nothing can be wrong with it that is not wrong with it.
///
/// # Errors
/// When it does not compile.
pub fn init() -> anyhow::Result<PathBuf> {
    static_program(INIT)
}
