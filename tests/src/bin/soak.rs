//! A bounded load while the agent is killed, restarted, succeeded, upgraded and toggled; run it with
//! `cargo xtask soak`.

use std::process::ExitCode;

use clap::Parser;
use comfy_table::{Table, presets};
use sidecar_tests::soak;

/// Makes connections while the agent is killed, restarted, succeeded, upgraded and toggled.
#[derive(Parser)]
struct Args {
    /// How many connections.
    #[arg(long, default_value_t = 200_000)]
    connections: u64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let checks = match soak::run(args.connections, |line| eprintln!("{line}")) {
        Ok(checks) => checks,
        Err(error) => {
            eprintln!("error: {error:#}");
            println!("0 passed, 1 failed");
            return ExitCode::FAILURE;
        }
    };
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["what", "seen", "ok"]);
    for check in &checks {
        let ok = if check.ok { "ok" } else { "FAILED" };
        table.add_row([check.what.as_str(), &check.seen, ok]);
    }
    println!("{table}");
    let passed = checks.iter().filter(|check| check.ok).count();
    println!("{passed} passed, {} failed", checks.len() - passed);
    if passed == checks.len() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
