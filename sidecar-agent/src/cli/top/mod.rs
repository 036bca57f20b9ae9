//! `top`.

mod figures;
mod listeners;
mod view;

use std::{
    io::{IsTerminal as _, stdout},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
};

use self::figures::Figures;
use super::{inputs::RunDir, output::print_text};
use crate::observe::status::Status;

/// Arguments of `top`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print one table and end; also done where stdout is no terminal.
    #[arg(long)]
    once: bool,
    /// Time over which rates are taken.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 1,
        value_parser = clap::value_parser!(u64).range(1..=3600)
    )]
    interval: u64,
    #[command(flatten)]
    agent: RunDir,
}

/// A state, and when it was.
struct Sample {
    at: Instant,
    status: Status,
}

impl Sample {
    fn take(run_dir: &RunDir) -> Result<Self> {
        let status = run_dir.status()?;
        Ok(Self {
            at: Instant::now(),
            status: *status,
        })
    }

    fn since(&self, before: &Self) -> Figures {
        Figures::new(&before.status, &self.status, self.at - before.at)
    }
}

/// Shows what the agent's workloads and listeners do, again and again, until `q` is pressed.
pub fn run(args: &Args) -> Result<ExitCode> {
    let interval = Duration::from_secs(args.interval);
    let first = Sample::take(&args.agent)?;
    if args.once || !stdout().is_terminal() {
        std::thread::sleep(interval);
        let figures = Sample::take(&args.agent)?.since(&first);
        print_text(&view::plain(&figures))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut terminal = ratatui::try_init().context("taking over the terminal")?;
    let ended = live(&mut terminal, &args.agent, interval, first);
    ratatui::restore();
    ended.map(|()| ExitCode::SUCCESS)
}

fn live(
    terminal: &mut DefaultTerminal,
    run_dir: &RunDir,
    interval: Duration,
    first: Sample,
) -> Result<()> {
    let mut figures = first.since(&first);
    let mut before = first;
    // The agent may go and come: what was seen last stays, with what is wrong.
    let mut trouble = None;
    loop {
        terminal
            .draw(|frame| view::draw(frame, &figures, trouble.as_deref()))
            .context("drawing")?;
        if is_over(before.at + interval)? {
            return Ok(());
        }
        if before.at.elapsed() < interval {
            // The terminal was resized.
            continue;
        }
        match Sample::take(run_dir) {
            Ok(now) => {
                figures = now.since(&before);
                before = now;
                trouble = None;
            }
            Err(error) => {
                before.at = Instant::now();
                trouble = Some(format!("{error:#}"));
            }
        }
    }
}

/// Waits until a time, or an event that must be drawn; true: the user has had enough.
fn is_over(until: Instant) -> Result<bool> {
    let left = until.saturating_duration_since(Instant::now());
    if !event::poll(left).context("waiting for a key")? {
        return Ok(false);
    }
    let is_end = |key: KeyEvent| {
        key.kind == KeyEventKind::Press
            && (matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)
                || key.code == KeyCode::Char('c') && key.modifiers == KeyModifiers::CONTROL)
    };
    Ok(matches!(event::read().context("reading a key")?, Event::Key(key) if is_end(key)))
}
