//! The benchmark; run it with `cargo xtask bench`.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::Parser;
use sidecar_tests::bench::{self, Group, Plan};

/// Measures capture beside no capture, iptables and other relays.
#[derive(Parser)]
struct Args {
    /// Write the results to this file, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Draw the ratios to this file, as SVG
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Fewer and shorter slices: to see where things stand
    #[arg(long)]
    quick: bool,
    /// Measure this part only (repeatable)
    #[arg(long = "group", value_enum)]
    groups: Vec<Group>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let plan = if args.quick { Plan::QUICK } else { Plan::FULL };
    let groups = if args.groups.is_empty() {
        &Group::ALL
    } else {
        &args.groups[..]
    };
    let report = bench::run(plan, groups, &mut |line| eprintln!("{line}"))?;
    println!("{}", report.table());
    let (met, all) = report.met();
    println!("{met} of {all} targets met");
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    if let Some(file) = &args.svg {
        bench::draw(&report.metrics, file)?;
    }
    Ok(())
}
