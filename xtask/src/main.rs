//! The project's own commands, run as `cargo xtask COMMAND`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod build_ebpf;
mod cargo;
mod conformance;
mod demo;
mod gen_docs;
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
    /// Run the test vectors
    Conformance(conformance::Args),
    /// Check formatting and run clippy, warnings being errors
    Lint,
    /// Show the agent at work in network namespaces of its own (as root)
    Demo(demo::Args),
    /// Write what of docs/ follows from the code
    GenDocs(gen_docs::Args),
}

fn main() -> ExitCode {
    // `false`: what failed was told, and counts stay the last line.
    let good = match Cli::parse().command {
        Command::Setup(args) => setup::run(&args).map(|()| true),
        Command::BuildEbpf => build_ebpf::run().map(|()| true),
        Command::Test(args) => test::run(&args),
        Command::Conformance(args) => conformance::run(&args),
        Command::Lint => lint::run().map(|()| true),
        Command::Demo(args) => demo::run(&args).map(|()| true),
        Command::GenDocs(args) => gen_docs::run(&args),
    };
    match good {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
