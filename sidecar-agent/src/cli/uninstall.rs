//! `uninstall`.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};

use super::{
    inputs::{Bpffs, RunDir},
    output::{Format, print, table},
};
use crate::{
    dataplane::uninstall::{self, Inventory, Link},
    runtime::Signals,
};

/// Arguments of `uninstall`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only tell what would be removed; the agent may be running.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    bpffs: Bpffs,
    #[command(flatten)]
    agent: RunDir,
    /// The agent's directory of state.
    #[arg(long, env = "SIDECAR_AGENT_STATE_DIR", value_name = "DIR", default_value = super::inputs::STATE_DIR)]
    state_dir: PathBuf,
    /// Having removed everything, wait for a signal: for a service manager that starts again what
    /// has ended, such as a kubelet.
    #[arg(long, conflicts_with = "dry_run")]
    await_stop: bool,
    #[command(flatten)]
    format: Format,
}

/// Removes what the agent has left in the kernel, and its files.
pub fn run(args: &Args) -> Result<ExitCode> {
    let pin_dir = args.bpffs.pin_dir();
    let found = if args.dry_run {
        uninstall::inventory(&pin_dir)?
    } else {
        let found = uninstall::uninstall(&pin_dir)?;
        crate::runtime::own_files::remove(&args.agent.run_dir, &args.state_dir)?;
        found
    };
    print(args.format, &found, || human(&found, args.dry_run))?;
    if args.await_stop {
        await_stop()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits for SIGTERM or SIGINT.
fn await_stop() -> Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("starting the runtime")?
        .block_on(async {
            Signals::new()?.any().await;
            Ok(())
        })
}

fn human(found: &Inventory, dry_run: bool) -> String {
    let verb = if dry_run { "to be removed" } else { "removed" };
    let rows = |links: &[Link]| {
        links
            .iter()
            .map(|link| {
                vec![
                    link.id.to_string(),
                    link.program.clone(),
                    link.target.clone(),
                    link.pin
                        .as_ref()
                        .map_or_else(String::new, |pin| pin.display().to_string()),
                ]
            })
            .collect::<Vec<_>>()
    };
    let head = format!(
        "{verb}: {} links, {} maps, the routing of {} network namespaces, {} empty cgroups",
        found.links.len(),
        found.maps.len(),
        found.routing.len(),
        found.cgroups.len()
    );
    let mut text = vec![head];
    let columns = ["LINK", "PROGRAM", "ATTACHED TO", "PIN"];
    if !found.links.is_empty() {
        text.push(table(&columns, rows(&found.links)));
    }
    if !found.orphans.is_empty() {
        text.push(
            "left alone, as they are not pinned where this agent's links are: of another agent, \
             or lost; to remove one: `bpftool link detach id LINK`"
                .to_owned(),
        );
        text.push(table(&columns, rows(&found.orphans)));
    }
    text.extend(found.strangers.iter().map(|stranger| {
        format!(
            "left alone, as it is no pin of this agent: {}",
            stranger.display()
        )
    }));
    text.join("\n")
}
