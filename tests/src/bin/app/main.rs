//! Small servers and clients for tests; `sidecar_tests::apps` runs it.

use std::{
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use sidecar_tests::{Cgroup, Namespace};

mod answer;
mod connect;
mod http;
mod load;
mod probe;
mod serve;
mod socket;
mod visit;

#[derive(Parser)]
struct Cli {
    /// Become this user and group first: UID:GID
    #[arg(long, value_parser = user)]
    user: Option<(u32, u32)>,
    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Subcommand)]
enum Subcommands {
    /// Accept connections until standard input ends
    Serve(serve::Args),
    /// Answer connections and datagrams at addresses that standard input names, until it ends
    Answer(answer::Args),
    /// Make one connection and print what became of it
    Connect(connect::Args),
    /// Make socket calls as standard input asks for them, until it ends
    Probe,
    /// Be one end of connections that are measured
    Load(load::Args),
    /// Make a namespace and a cgroup, print their paths, and wait to be interrupted: for the test
    /// of what happens then
    Linger,
}

fn user(text: &str) -> anyhow::Result<(u32, u32)> {
    let (uid, gid) = text.split_once(':').context("no colon")?;
    Ok((uid.parse()?, gid.parse()?))
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match (cli.user, cli.command) {
        (Some((uid, gid)), _) => become_user(uid, gid),
        (None, Subcommands::Serve(args)) => serve::run(&args),
        (None, Subcommands::Answer(args)) => answer::run(&args),
        (None, Subcommands::Connect(args)) => connect::run(&args),
        (None, Subcommands::Probe) => probe::run(),
        (None, Subcommands::Load(args)) => load::run(&args),
        (None, Subcommands::Linger) => linger(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("app: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn linger() -> anyhow::Result<()> {
    let netns = Namespace::new("linger")?;
    let cgroup = Cgroup::new("linger")?;
    println!("{} {}", netns.path().display(), cgroup.path().display());
    loop {
        std::thread::park();
    }
}

/// Starts over as another user. By way of `/proc/self/exe`, which the user may run even when the
/// path of this program is closed to them.
fn become_user(uid: u32, gid: u32) -> anyhow::Result<()> {
    let args = std::env::args_os()
        .skip(1)
        .filter(|arg| !arg.as_encoded_bytes().starts_with(b"--user"));
    let error = Command::new("/proc/self/exe")
        .args(args)
        .uid(uid)
        .gid(gid)
        .exec();
    Err(error).with_context(|| format!("cannot become user {uid}:{gid}"))
}
