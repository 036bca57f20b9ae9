//! The project's own commands, run as `cargo xtask COMMAND`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod build_ebpf;
mod cargo;
mod demo;
mod lint;
mod setup;
mod suites;
mod test;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "The project's own commands"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building and testing need and is not there
    Setup(setup::Args),
    /// Build the BPF programs and list them
    BuildEbpf,
    /// Run the test suites, installing what they need first
    Test(test::Args),
    /// Check formatting and run clippy, warnings being errors
    Lint,
    /// Show the agent at work in network namespaces of its own (as root)
    Demo(demo::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Setup(args) => setup::run(&args),
        Command::BuildEbpf => build_ebpf::run(),
        Command::Test(args) => match test::run(&args) {
            Ok(true) => Ok(()),
            // What failed was told, and the counts stay the last line.
            Ok(false) => return ExitCode::FAILURE,
            Err(error) => Err(error),
        },
        Command::Lint => lint::run(),
        Command::Demo(args) => demo::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
