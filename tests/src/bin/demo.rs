//! Shows the agent at work; run it with `cargo xtask demo`.
//!
//! Everything it makes is below namespaces and cgroups of its own and is removed when it ends,
//! also on Ctrl-C.

use std::{process::ExitCode, time::Instant};

use clap::Parser;
use comfy_table::{Table, presets};
use sidecar_tests::scenario::{Row, SCENARIOS};

/// Shows the agent at work on the examples of the Sidecar reference.
#[derive(Parser)]
struct Args {
    /// Only these scenarios.
    scenarios: Vec<String>,
    /// Name the scenarios.
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.list {
        for scenario in SCENARIOS {
            println!("{:20} {}", scenario.name, scenario.about);
        }
        return ExitCode::SUCCESS;
    }
    if let Some(unknown) = args
        .scenarios
        .iter()
        .find(|name| SCENARIOS.iter().all(|known| known.name != **name))
    {
        eprintln!("there is no scenario `{unknown}`; see --list");
        return ExitCode::from(2);
    }
    let started = Instant::now();
    let mut rows = Vec::new();
    let mut failed = false;
    for scenario in SCENARIOS {
        if !args.scenarios.is_empty() && !args.scenarios.iter().any(|name| name == scenario.name) {
            continue;
        }
        eprintln!("{}: {} ...", scenario.name, scenario.about);
        match (scenario.run)() {
            Ok(found) => rows.extend(found.into_iter().map(|row| (scenario.name, row))),
            Err(error) => {
                eprintln!("{} could not be run: {error:#}", scenario.name);
                failed = true;
            }
        }
    }
    println!("{}", table(&rows));
    let good = rows.iter().filter(|(_, row)| row.ok).count();
    println!(
        "{good} of {} as expected, {:.1} s",
        rows.len(),
        started.elapsed().as_secs_f32()
    );
    if failed || good != rows.len() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn table(rows: &[(&str, Row)]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "scenario",
        "asked for",
        "the kernel did",
        "path",
        "reason",
        "expected",
        "ok",
    ]);
    for (scenario, row) in rows {
        let ok = if row.ok { "ok" } else { "FAILED" };
        table.add_row([
            scenario,
            row.asked.as_str(),
            &row.did,
            &row.path,
            &row.reason,
            &row.expected,
            ok,
        ]);
    }
    table
}
