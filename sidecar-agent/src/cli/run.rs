//! `run`.

use std::{
    net::{AddrParseError, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    str::FromStr,
    time::Duration,
};

use anyhow::{Context, Result};

use super::{
    cluster::ClusterArgs,
    inputs::{Beside, Bpffs, RunDir, STATE_DIR},
};
use crate::{dataplane::Capacity, doctor, limits, privileges, runtime};

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of resources.
    #[arg(
        long,
        env = "SIDECAR_AGENT_CONFIG",
        value_name = "DIR",
        required_unless_present = "kube"
    )]
    config: Option<PathBuf>,
    #[command(flatten)]
    beside: Beside,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    agent: RunDir,
    /// Directory of what outlives the agent, and a restart of the machine.
    #[arg(long, env = "SIDECAR_AGENT_STATE_DIR", value_name = "DIR", default_value = STATE_DIR)]
    state_dir: PathBuf,
    /// Take over from the agent that runs with the same --run-dir, without a connection that is
    /// refused: it ends when its live relayed connections have. If none runs, just start.
    #[arg(long, env = "SIDECAR_AGENT_TAKE_OVER")]
    take_over: bool,
    /// When the next agent has taken over, wait for a signal instead of ending: for a service manager
    /// that starts again what has ended, such as a kubelet. The first signal lets live relayed
    /// connections go on for as long as --drain says.
    #[arg(long, env = "SIDECAR_AGENT_AWAIT_STOP")]
    await_stop: bool,
    /// How long live relayed connections may go on when the agent ends. A second signal ends it at
    /// once.
    #[arg(
        long,
        env = "SIDECAR_AGENT_DRAIN",
        value_name = "SECONDS",
        default_value_t = 30
    )]
    drain: u64,
    #[command(flatten)]
    bpffs: Bpffs,
    /// Most workloads on this node.
    #[arg(long, default_value_t = Capacity::default().workloads)]
    max_workloads: u32,
    /// Most plans at once; equal workloads share one.
    #[arg(long, default_value_t = Capacity::default().plans)]
    max_plans: u32,
    /// Most entries in each rule table, all plans together.
    #[arg(long, default_value_t = Capacity::default().rules)]
    max_rules: u32,
    /// Most listening sockets that captured connections are handed to.
    #[arg(long, default_value_t = Capacity::default().sockets)]
    max_sockets: u32,
    /// Most redirected connections whose original destination is remembered, and most destinations
    /// that are known by the address they are led to.
    #[arg(long, default_value_t = Capacity::default().original_dst)]
    max_original_dst: u32,
    /// Where metrics (/metrics) and health (/livez, /readyz) are served over HTTP; port 0 is one of
    /// the kernel's choice, empty is nowhere.
    #[arg(
        long,
        env = "SIDECAR_AGENT_METRICS_ADDRESS",
        value_name = "IP:PORT",
        default_value = "127.0.0.1:15094"
    )]
    metrics_address: Address,
    /// Which of the agents that may answer at that address this is: `/readyz?instance=NAME` is
    /// refused by those with another name.
    #[arg(
        long,
        env = "SIDECAR_AGENT_INSTANCE",
        value_name = "NAME",
        default_value = ""
    )]
    instance: String,
    /// Tell decisions by workload in the metrics: as many series more for each.
    #[arg(long, env = "SIDECAR_AGENT_METRICS_PER_WORKLOAD")]
    metrics_per_workload: bool,
    /// The agent's main loop must turn once in so many seconds, or /livez fails.
    #[arg(
        long,
        env = "SIDECAR_AGENT_STALL_LIMIT",
        value_name = "SECONDS",
        default_value_t = 30,
        value_parser = clap::value_parser!(u64).range(2..)
    )]
    stall_limit: u64,
}

/// Where to listen, or nowhere.
#[derive(Clone, Copy, Debug)]
struct Address(Option<SocketAddr>);

impl FromStr for Address {
    type Err = AddrParseError;

    fn from_str(text: &str) -> Result<Self, AddrParseError> {
        let is_given = !text.is_empty();
        is_given.then(|| text.parse()).transpose().map(Self)
    }
}

/// Runs the agent.
pub fn run(args: Args) -> Result<ExitCode> {
    let Beside {
        mesh_config,
        dns_servers,
        failure_policy,
        compat,
    } = args.beside;
    doctor::preflight(&args.bpffs.bpffs)?;
    limits::raise();
    // As long as there is one thread only, whose heirs the others are.
    privileges::drop_others()?;
    let options = runtime::Options {
        config: args.config,
        mesh_config,
        cluster: args.cluster.options(&args.agent.run_dir)?,
        run_dir: args.agent.run_dir,
        state_dir: args.state_dir,
        take_over: args.take_over,
        await_stop: args.await_stop,
        drain: Duration::from_secs(args.drain),
        bpffs: args.bpffs.bpffs,
        dns_servers,
        failure_policy,
        compat: compat.compat,
        capacity: Capacity {
            workloads: args.max_workloads,
            plans: args.max_plans,
            rules: args.max_rules,
            sockets: args.max_sockets,
            original_dst: args.max_original_dst,
        },
        metrics: args.metrics_address.0,
        instance: args.instance,
        metrics_per_workload: args.metrics_per_workload,
        stall_limit: Duration::from_secs(args.stall_limit),
    };
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("starting the runtime")?
        .block_on(runtime::run(options))?;
    Ok(ExitCode::SUCCESS)
}
