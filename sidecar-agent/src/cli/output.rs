//! Output formats shared by the verbs.

use std::io::Write;

use anyhow::{Context, Result};
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

/// The `-o` option.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Format {
    /// How to print.
    #[arg(short, long = "output", value_enum, default_value_t = Kind::Table)]
    output: Kind,
}

/// Output formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// For both.
    Yaml,
}

/// Prints `value` in the format asked for; `human` makes the table.
pub fn print<T: Serialize>(
    format: Format,
    value: &T,
    human: impl FnOnce() -> String,
) -> Result<()> {
    let text = match format.output {
        Kind::Table => human(),
        Kind::Json => serde_json::to_string_pretty(value).context("writing JSON")?,
        Kind::Yaml => serde_saphyr::to_string(value).context("writing YAML")?,
    };
    print_text(&text)
}

/// Prints a text.
pub fn print_text(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{}", text.trim_end()) {
        // `sidecar-agent plan | head` is no failure.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("writing to stdout"),
    }
}

/// A table without lines, as kubectl prints them.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header);
    for row in rows {
        table.add_row(row);
    }
    table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}
