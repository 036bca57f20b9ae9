//! Figures on a terminal, and as plain text.

use std::ops::RangeInclusive;

use ratatui::{
    Frame,
    layout::{Constraint, Layout},
    style::{Color, Modifier, Style},
    text::Line,
    widgets::{Paragraph, Row as TableRow, Table},
};
use sidecar_common::Path;

use super::{
    figures::{Figures, Row},
    listeners,
};
use crate::{
    cli::{output::table, render::printable},
    observe::status::State,
};

/// Draws the whole screen; `trouble`: why the figures are old.
pub fn draw(frame: &mut Frame<'_>, figures: &Figures, trouble: Option<&str>) {
    let [head, workloads, of_listeners, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Fill(1),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let lines: Vec<Line<'_>> = heading(figures).into_iter().map(Line::from).collect();
    frame.render_widget(Paragraph::new(lines), head);

    let rows = figures.rows.iter().map(|row| {
        let style = match row.state {
            State::Captured | State::Off => Style::new(),
            State::Stale => Style::new().fg(Color::Yellow),
            State::Pending => Style::new().fg(Color::Red),
        };
        (cells(row), style)
    });
    frame.render_widget(sheet(columns(), rows.collect(), 20..=48), workloads);
    let rows = figures.listeners.iter();
    let rows = rows.map(|row| (listeners::cells(row), Style::new()));
    let listeners = sheet(listeners::COLUMNS, rows.collect(), 20..=60);
    frame.render_widget(listeners, of_listeners);

    let (text, style) = match trouble {
        Some(trouble) => (printable(trouble), Style::new().fg(Color::Red)),
        None => (
            "q: quit".to_owned(),
            Style::new().add_modifier(Modifier::DIM),
        ),
    };
    frame.render_widget(Paragraph::new(text).style(style), foot);
}

/// A table, of which the last column takes what the others, each as wide as its widest cell, leave.
fn sheet<const N: usize>(
    columns: [&str; N],
    rows: Vec<([String; N], Style)>,
    first: RangeInclusive<u16>,
) -> Table<'_> {
    let width = |index: usize| {
        let cells = rows.iter().map(|(cells, _)| cells[index].chars().count());
        let widest = cells.chain([columns[index].len()]).max();
        let widest = u16::try_from(widest.unwrap_or_default()).unwrap_or(u16::MAX);
        match index {
            0 => widest.clamp(*first.start(), *first.end()),
            _ => widest.max(8),
        }
    };
    let widths: Vec<Constraint> = (0..N - 1)
        .map(|index| Constraint::Length(width(index)))
        .chain([Constraint::Fill(1)])
        .collect();
    let header = TableRow::new(columns.map(str::to_owned));
    let header = header.style(Style::new().add_modifier(Modifier::REVERSED));
    let rows = rows
        .into_iter()
        .map(|(cells, style)| TableRow::new(cells).style(style));
    Table::new(rows, widths).header(header)
}

/// The same as text.
#[must_use]
pub fn plain(figures: &Figures) -> String {
    let rows = figures.rows.iter().map(|row| cells(row).to_vec());
    let workloads = table(&columns(), rows);
    let rows = figures.listeners.iter();
    let rows = rows.map(|row| listeners::cells(row).to_vec());
    let listeners = table(&listeners::COLUMNS, rows);
    let [first, second] = heading(figures);
    [first, second, workloads, String::new(), listeners].join("\n")
}

fn heading(figures: &Figures) -> [String; 2] {
    let states = State::ALL
        .iter()
        .zip(figures.states)
        .map(|(state, count)| format!("{count} {}", state.name()));
    let states: Vec<String> = states.collect();
    [
        format!(
            "sidecar-agent {}, pid {}; workloads: {}; configuration {}, {} findings",
            figures.version,
            figures.pid,
            states.join(", "),
            figures.generation,
            figures.findings
        ),
        format!(
            "relay: {} connections, {}/s to targets, {}/s to clients; listeners: {}, {} not listed",
            figures.relayed,
            bytes(figures.to_target),
            bytes(figures.to_client),
            figures.listeners.len(),
            figures.unlisted
        ),
    ]
}

/// `PASS/S`, ..., in the order of `Path::ALL`.
const PER_SECOND: [&str; Path::ALL.len()] = ["PASS/S", "DIRECT/S", "RELAY/S", "PROXY/S", "DENY/S"];

fn columns() -> [&'static str; 9] {
    let [pass, direct, relay, proxy, deny] = PER_SECOND;
    [
        "WORKLOAD", "STATE", pass, direct, relay, proxy, deny, "TOTAL", "PROBLEM",
    ]
}

fn cells(row: &Row) -> [String; 9] {
    let [pass, direct, relay, proxy, deny] = row.rates.map(rate);
    [
        printable(&row.workload),
        row.state.name().to_owned(),
        pass,
        direct,
        relay,
        proxy,
        deny,
        row.total.to_string(),
        printable(&row.problem),
    ]
}

pub(super) fn rate(rate: f64) -> String {
    if rate > 0.0 && rate < 10.0 {
        format!("{rate:.1}")
    } else {
        format!("{rate:.0}")
    }
}

pub(super) fn bytes(bytes: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB"];
    let mut value = bytes;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ratatui::{Terminal, backend::TestBackend};

    use super::*;
    use crate::cli::top::figures::tests::status;

    fn figures() -> Figures {
        Figures::new(&status(10, 0), &status(30, 1 << 20), Duration::from_secs(2))
    }

    fn screen(trouble: Option<&str>) -> String {
        let mut terminal = Terminal::new(TestBackend::new(120, 11)).unwrap();
        terminal
            .draw(|frame| draw(frame, &figures(), trouble))
            .unwrap();
        let text = terminal.backend().to_string();
        let lines = text.lines().map(|line| line.trim_matches('"').trim_end());
        lines.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_screen_shows_heading_table_and_help() {
        let expected = "\
sidecar-agent 1.2.3, pid 4321; workloads: 1 captured, 1 stale, 0 off, 1 pending; configuration 7, 3 findings
relay: 12 connections, 512.0 KiB/s to targets, 1.0 MiB/s to clients; listeners: 2, 5 not listed
WORKLOAD             STATE    PASS/S   DIRECT/S RELAY/S  PROXY/S  DENY/S   TOTAL    PROBLEM
prod/busy            captured 0        20       0        0        0        61
prod/idle            stale    0        0        0        0        0        5000
prod/absent          pending  0        0        0        0        0        0        its cgroup is not there
LISTENER              WORKLOAD  PATH     OPEN     NEW/S    TO TARGET/S TO CLIENT/S LEADS TO
egress 127.0.0.1:3306 prod/busy relay    3        0        512.0 KiB   1.0 MiB     unix:///db.sock (db.example.com)
ingress *:9080        prod/busy direct   -        -        -           -           127.0.0.1:8080, 2 more

q: quit";
        assert_eq!(screen(None), expected);
    }

    #[test]
    fn trouble_is_shown_and_cannot_control_the_terminal() {
        let text = screen(Some("the agent is\u{1b}[2J gone"));
        assert!(text.ends_with("the agent is [2J gone"), "{text}");
        assert!(text.contains("prod/busy"), "{text}");
    }

    #[test]
    fn plain_text_has_the_same() {
        let expected = "\
sidecar-agent 1.2.3, pid 4321; workloads: 1 captured, 1 stale, 0 off, 1 pending; configuration 7, 3 findings
relay: 12 connections, 512.0 KiB/s to targets, 1.0 MiB/s to clients; listeners: 2, 5 not listed
 WORKLOAD     STATE     PASS/S  DIRECT/S  RELAY/S  PROXY/S  DENY/S  TOTAL  PROBLEM
 prod/busy    captured  0       20        0        0        0       61
 prod/idle    stale     0       0         0        0        0       5000
 prod/absent  pending   0       0         0        0        0       0      its cgroup is not there

 LISTENER               WORKLOAD   PATH    OPEN  NEW/S  TO TARGET/S  TO CLIENT/S  LEADS TO
 egress 127.0.0.1:3306  prod/busy  relay   3     0      512.0 KiB    1.0 MiB      unix:///db.sock (db.example.com)
 ingress *:9080         prod/busy  direct  -     -      -            -            127.0.0.1:8080, 2 more";
        assert_eq!(plain(&figures()), expected);
    }

    #[test]
    fn a_screen_that_is_too_small_is_no_failure() {
        for (width, height) in [(1, 1), (10, 2), (300, 3)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            terminal
                .draw(|frame| draw(frame, &figures(), None))
                .unwrap();
        }
    }
}
