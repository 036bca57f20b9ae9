//! The command line: one file per verb, output on stdout, logs on stderr.
//!
//! Exit codes: 0 done, 1 failed or errors found, 2 wrong usage, 3 `check` or `doctor` found only
//! warnings.

mod callers;
mod capture;
pub mod check;
mod cluster;
mod cni;
mod doctor;
mod dump;
mod explain;
mod inputs;
mod output;
mod plan;
pub mod render;
mod run;
mod status;
mod top;
mod trace;
mod uninstall;

use std::{io, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::cni::plugin;

/// eBPF transparent traffic capture for Istio Sidecar resources.
#[derive(Debug, Parser)]
#[command(version, about, propagate_version = true)]
struct Cli {
    /// What is logged on stderr, in the words of tracing's `EnvFilter`.
    #[arg(
        long,
        global = true,
        env = "SIDECAR_AGENT_LOG",
        default_value = "info",
        value_name = "FILTER"
    )]
    log: EnvFilter,
    /// How log lines are written.
    #[arg(
        long,
        global = true,
        env = "SIDECAR_AGENT_LOG_FORMAT",
        value_enum,
        default_value_t = LogFormat::Text,
        value_name = "FORMAT"
    )]
    log_format: LogFormat,
    #[command(subcommand)]
    verb: Verb,
}

/// Formats of log lines.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Capture the traffic of this node's workloads until told to stop.
    Run(Box<run::Args>),
    /// Validate resources; needs no root and no kernel.
    Check(check::Args),
    /// Print what would be programmed; needs no root and no kernel.
    Plan(plan::Args),
    /// Say what happens to a connection, why, and which resource says so.
    Explain(explain::Args),
    /// Show what the running agent does.
    Status(status::Args),
    /// Show what is in the kernel's maps, by name; needs no running agent, and disturbs none.
    Dump(dump::Args),
    /// Turn the capture of one workload on or off, live; it stays so when the agent restarts.
    Capture(capture::Args),
    /// Remove what the agent has in the kernel, and nothing else; stopping it removes nothing.
    Uninstall(uninstall::Args),
    /// Look for what this node lacks, by trying it, and for what is in the way. Exit codes: 0 all
    /// well, 1 something needed is missing, 3 only warnings.
    Doctor(doctor::Args),
    /// Show what the running agent's workloads do, live.
    Top(top::Args),
    /// Show the decisions of the running agent's programs, as they are made.
    Trace(trace::Args),
    /// The CNI plugin, as container runtimes run it; and to put it on this node, or take it away.
    Cni(cni::Args),
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// The command line, for whoever documents it.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Parses the command line and does what it says.
#[must_use]
pub fn main() -> ExitCode {
    if plugin::is_wanted() {
        return plugin::run();
    }
    let cli = Cli::parse();
    let log = tracing_subscriber::fmt()
        .with_env_filter(cli.log)
        .with_writer(io::stderr);
    match cli.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    let result = match cli.verb {
        Verb::Run(args) => run::run(*args),
        Verb::Check(args) => check::run(&args),
        Verb::Plan(args) => plan::run(&args),
        Verb::Explain(args) => explain::run(&args),
        Verb::Status(args) => status::run(&args),
        Verb::Dump(args) => dump::run(&args),
        Verb::Capture(args) => capture::run(&args),
        Verb::Uninstall(args) => uninstall::run(&args),
        Verb::Doctor(args) => doctor::run(args),
        Verb::Top(args) => top::run(&args),
        Verb::Trace(args) => trace::run(args),
        Verb::Cni(args) => cni::run(args),
        Verb::Completions { shell } => {
            clap_complete::generate(shell, &mut command(), "sidecar-agent", &mut io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
