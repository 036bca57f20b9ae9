//! What is told in the end.

use std::{fmt, fs, process::Command, thread};

use anyhow::Context as _;
use comfy_table::{CellAlignment, Table, presets};
use serde::{Deserialize, Serialize};

use super::{Metric, Plan, Target};
use crate::{command::output, envoy};

/// Where it was measured, and with what.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Host {
    /// Release of the kernel.
    pub kernel: String,
    /// Model of the CPUs.
    pub cpu: String,
    /// How many there are.
    pub cpus: usize,
    /// Version of `HAProxy`; absent: not installed.
    pub haproxy: Option<String>,
    /// Version of Envoy; absent: not installed.
    pub envoy: Option<String>,
    /// Slices of each comparison.
    pub slices: usize,
    /// Connections of a slice.
    pub connections: u32,
    /// Time of a slice in which bytes are sent, in ms.
    pub millis: u32,
}

/// The results.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Report {
    /// Where they come from.
    pub host: Host,
    /// What they are.
    pub metrics: Vec<Metric>,
}

impl Host {
    /// This one.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn this(plan: Plan) -> anyhow::Result<Self> {
        let cpus = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
        let model = cpus
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let uname = rustix::system::uname();
        Ok(Self {
            kernel: uname.release().to_string_lossy().into_owned(),
            cpu: model.map_or_else(String::new, |(_, name)| name.trim().to_owned()),
            cpus: thread::available_parallelism()?.get(),
            haproxy: version(Command::new("haproxy").arg("-v")),
            envoy: envoy::program()
                .ok()
                .and_then(|program| version(Command::new(program).arg("--version"))),
            slices: plan.slices,
            connections: plan.connections,
            millis: plan.millis,
        })
    }
}

/// The last word but for the details: of the first line that says something.
fn version(command: &mut Command) -> Option<String> {
    let text = output(command).ok()?;
    let line = text.lines().find(|line| !line.trim().is_empty())?;
    let words = line.split([' ', '/']);
    let mut numbers = words.filter(|word| {
        let begins = word
            .chars()
            .next()
            .is_some_and(|first| first.is_ascii_digit());
        begins && word.contains('.')
    });
    numbers.next().map(ToOwned::to_owned)
}

impl Report {
    /// As a table.
    #[must_use]
    pub fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.set_header(["metric", "value", "from", "to", "unit", "target", ""]);
        for metric in &self.metrics {
            let verdict = match metric.meets {
                Some(true) => "met",
                Some(false) => "MISSED",
                None => "",
            };
            let target = metric.target.map_or_else(String::new, |of| of.to_string());
            table.add_row([
                metric.name.clone(),
                figure(metric.value),
                figure(metric.low),
                figure(metric.high),
                metric.unit.to_string(),
                target,
                verdict.to_owned(),
            ]);
        }
        for column in 1..4 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table
    }

    /// How many targets are met, and how many there are.
    #[must_use]
    pub fn met(&self) -> (usize, usize) {
        let verdicts = self.metrics.iter().filter_map(|metric| metric.meets);
        verdicts.fold((0, 0), |(met, all), meets| {
            (met + usize::from(meets), all + 1)
        })
    }
}

/// Three digits behind the point where that is what matters.
pub(super) fn figure(value: f64) -> String {
    if value.abs() < 10. {
        format!("{value:.3}")
    } else {
        format!("{value:.1}")
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, ">= {least}"),
            Self::AtMost(most) => write!(f, "<= {most}"),
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name, unit, target, ..
        } = self;
        let [value, low, high] = [self.value, self.low, self.high].map(figure);
        write!(f, "{name} {value} {unit} [{low} to {high}]")?;
        match (target, self.meets) {
            (Some(target), Some(true)) => write!(f, ", {target}: met"),
            (Some(target), Some(false)) => write!(f, ", {target}: MISSED"),
            _ => Ok(()),
        }
    }
}
