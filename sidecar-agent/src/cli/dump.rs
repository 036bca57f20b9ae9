//! `dump`.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::Value;

use super::{
    inputs::Bpffs,
    output::{Format, print, table},
    render::printable,
};
use crate::dataplane::dump::{self, Dump, Row, What};

/// Arguments of `dump`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to show; everything if none is given.
    #[arg(value_name = "MAP", value_enum)]
    what: Vec<What>,
    #[command(flatten)]
    bpffs: Bpffs,
    #[command(flatten)]
    format: Format,
}

/// Shows what is in the maps.
pub fn run(args: &Args) -> Result<ExitCode> {
    let dump = dump::read(&args.bpffs.pin_dir(), &args.what)?;
    print(args.format, &dump, || human(&dump))?;
    Ok(ExitCode::SUCCESS)
}

fn human(dump: &Dump) -> String {
    let sections = [
        section("SETS", dump.sets.as_deref()),
        section("WORKLOADS", dump.workloads.as_deref()),
        section("PLANS", dump.plans.as_deref()),
        section("OUTBOUND", dump.outbound.as_deref()),
        section("PREFIXES", dump.prefixes.as_deref()),
        section("INBOUND", dump.inbound.as_deref()),
        section("BACKENDS", dump.backends.as_deref()),
        section("OWNERS", dump.owners.as_deref()),
        section("INTERFACES", dump.interfaces.as_deref()),
        section("ROUTES", dump.routes.as_deref()),
        section("LOCAL_ADDRS", dump.local_addrs.as_deref()),
        section("LISTEN_INTEREST", dump.listen_interest.as_deref()),
        section("SOCKETS", dump.sockets.as_deref()),
        section("ORIGINAL_DST", dump.original_dst.as_deref()),
        section("DESTINATIONS", dump.destinations.as_deref()),
        section("IDENTITIES", dump.identities.as_deref()),
        section("LINKS", dump.links.as_deref()),
        section("COUNTERS", dump.counters.as_deref()),
    ];
    sections
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join("\n\n")
}

fn section<R: Row>(name: &str, rows: Option<&[R]>) -> Option<String> {
    let rows = rows?;
    if rows.is_empty() {
        return Some(format!("{name}: empty"));
    }
    let header: Vec<String> = R::COLUMNS.iter().map(|name| name.to_uppercase()).collect();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let cells = rows.iter().map(|row| {
        // Strings and numbers only, so there is nothing that JSON could not hold.
        let row = serde_json::to_value(row).unwrap_or_default();
        R::COLUMNS.iter().map(|column| cell(&row[column])).collect()
    });
    Some(format!("{name}\n{}", table(&header, cells)))
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => printable(text),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}
