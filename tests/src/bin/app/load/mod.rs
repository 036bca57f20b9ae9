//! Ends of connections that are measured. One thread, on one CPU.

mod connect;
mod connections;
mod listen;
mod many;

use anyhow::Context as _;
use clap::Subcommand;
use rustix::thread::{CpuSet, sched_setaffinity};

#[derive(clap::Args)]
pub struct Args {
    /// The CPU to run on
    #[arg(long)]
    cpu: usize,
    #[command(subcommand)]
    end: End,
}

#[derive(Subcommand)]
enum End {
    /// Do as standard input says, until it ends
    Connect,
    /// Serve until killed
    Listen(listen::Args),
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(args.cpu);
    sched_setaffinity(None, &cpus).with_context(|| format!("cannot run on CPU {}", args.cpu))?;
    match &args.end {
        End::Connect => connect::run(),
        End::Listen(args) => listen::run(args),
    }
}
