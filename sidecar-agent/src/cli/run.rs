//! `run`.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};

use super::inputs::{BPFFS, Inputs, RUN_DIR};
use crate::{dataplane::Capacity, doctor, privileges, runtime};

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    inputs: Inputs,
    /// Directory of the admin socket.
    #[arg(long, env = "SIDECAR_AGENT_RUN_DIR", value_name = "DIR", default_value = RUN_DIR)]
    run_dir: PathBuf,
    /// Where bpffs is mounted, or is to be.
    #[arg(
        long,
        env = "SIDECAR_AGENT_BPFFS",
        value_name = "DIR",
        default_value = BPFFS
    )]
    bpffs: PathBuf,
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
    /// Most redirected connections whose original destination is remembered.
    #[arg(long, default_value_t = Capacity::default().original_dst)]
    max_original_dst: u32,
}

/// Runs the agent.
pub fn run(args: Args) -> Result<ExitCode> {
    let Inputs {
        config,
        mesh_config,
        dns_servers,
        compat,
    } = args.inputs;
    doctor::preflight(&args.bpffs)?;
    // As long as there is one thread only, whose heirs the others are.
    privileges::drop_others()?;
    let options = runtime::Options {
        config,
        mesh_config,
        run_dir: args.run_dir,
        bpffs: args.bpffs,
        dns_servers,
        compat: compat.compat,
        capacity: Capacity {
            workloads: args.max_workloads,
            plans: args.max_plans,
            rules: args.max_rules,
            sockets: args.max_sockets,
            original_dst: args.max_original_dst,
        },
    };
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("starting the runtime")?
        .block_on(runtime::run(options))?;
    Ok(ExitCode::SUCCESS)
}
