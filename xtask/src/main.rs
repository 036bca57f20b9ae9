//! The project's own commands, run as `cargo xtask COMMAND`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod artifacts;
mod bench;
mod build_ebpf;
mod cargo;
mod conformance;
mod cross;
mod demo;
mod fuzz;
mod generate;
mod image;
mod lint;
mod setup;
mod soak;
mod suites;
mod test;
mod vm;

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
    /// Run the fuzz targets, installing what they need first
    Fuzz(fuzz::Args),
    /// Measure capture beside no capture, iptables and other relays (as root)
    Bench(bench::Args),
    /// Run the test vectors
    Conformance(conformance::Args),
    /// Check formatting and run clippy, warnings being errors
    Lint,
    /// Show the agent at work in network namespaces of its own (as root)
    Demo(demo::Args),
    /// Make connections while the agent is killed, restarted, upgraded and toggled (as root)
    Soak(soak::Args),
    /// Run the tests that need a kernel on other kernels, in virtual machines
    Vm(vm::Args),
    /// Find the programs that the tests run a cluster with, or build them
    KubeAssets,
    /// Check that everything compiles for other machines, installing what that needs first
    Cross(cross::Args),
    /// Write what of docs/ follows from the code
    GenDocs(generate::Args),
    /// Build a static agent and a container image of it
    Image,
    /// Render the Helm chart into deploy/manifests, and what tests compare it with
    Manifests(generate::Args),
}

fn main() -> ExitCode {
    // What failed was told, and counts stay the last line.
    let verdict = |good| {
        if good {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    };
    let done = match Cli::parse().command {
        Command::Setup(args) => setup::run(&args).map(|()| ExitCode::SUCCESS),
        Command::BuildEbpf => build_ebpf::run().map(|()| ExitCode::SUCCESS),
        Command::Test(args) => test::run(&args).map(verdict),
        Command::Fuzz(args) => fuzz::run(&args).map(verdict),
        Command::Bench(args) => bench::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Conformance(args) => conformance::run(&args),
        Command::Lint => lint::run().map(|()| ExitCode::SUCCESS),
        Command::Demo(args) => demo::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Soak(args) => soak::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Vm(args) => vm::run(&args).map(verdict),
        Command::KubeAssets => setup::kube_assets().map(|()| ExitCode::SUCCESS),
        Command::Cross(args) => cross::run(&args).map(verdict),
        Command::GenDocs(args) => generate::docs(&args).map(verdict),
        Command::Image => image::run().map(|()| ExitCode::SUCCESS),
        Command::Manifests(args) => generate::manifests(&args).map(verdict),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
