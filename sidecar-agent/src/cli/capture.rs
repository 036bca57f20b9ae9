//! `capture`.

use std::process::ExitCode;

use anyhow::{Result, bail};

use super::{
    inputs::RunDir,
    output::{Format, print},
};
use crate::observe::{
    admin::{self, Answer, Request},
    status::CaptureStatus,
};

/// Arguments of `capture`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What is to become of new connections; established ones are never touched.
    #[arg(value_enum)]
    to: To,
    /// `namespace/name`.
    workload: String,
    #[command(flatten)]
    agent: RunDir,
    #[command(flatten)]
    format: Format,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum To {
    /// They are captured.
    On,
    /// They pass, as if there were no agent.
    Off,
    /// As the workload's configuration says.
    Reset,
}

/// Asks the running agent, and prints what has come of it.
pub fn run(args: &Args) -> Result<ExitCode> {
    let request = Request::Capture {
        workload: args.workload.clone(),
        on: match args.to {
            To::On => Some(true),
            To::Off => Some(false),
            To::Reset => None,
        },
    };
    match admin::ask(&args.agent.run_dir, &request)? {
        Answer::Capture(capture) => {
            print(args.format, &capture, || human(&args.workload, capture))?;
        }
        Answer::Error(message) => bail!(message),
        _ => bail!("the agent has answered something else"),
    }
    Ok(ExitCode::SUCCESS)
}

fn human(workload: &str, capture: CaptureStatus) -> String {
    let on = |on| if on { "on" } else { "off" };
    let CaptureStatus { wanted, by, actual } = capture;
    let but = if wanted == actual {
        String::new()
    } else {
        let actual = on(actual);
        format!(", but actually {actual}: see `sidecar-agent status`")
    };
    format!("{workload}: capture is {} (by {by}){but}", on(wanted))
}
