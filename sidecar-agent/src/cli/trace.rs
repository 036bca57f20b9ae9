//! `trace`.

use std::{
    io::{ErrorKind, Write},
    net::IpAddr,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use ipnet::IpNet;
use sidecar_common::{Path, Reason, decide::Direction};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};

use super::{inputs::RunDir, render::printable};
use crate::observe::{
    admin,
    trace::{Filter, Line, Lost, Record},
};

/// How long the agent may take for its last words.
const PATIENCE: Duration = Duration::from_secs(5);

/// Arguments of `trace`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The workload, as `namespace/name`; all if absent.
    workload: Option<String>,
    /// Only connections in this direction, seen from the workload.
    #[arg(long, value_parser = names([Direction::Outbound.name(), Direction::Inbound.name()]))]
    direction: Option<String>,
    /// Only those that travel so; may be repeated.
    #[arg(long = "path", value_parser = names(Path::ALL.iter().map(|path| path.name())))]
    paths: Vec<String>,
    /// Only those decided for this reason (see docs/reasons.md); may be repeated.
    #[arg(
        long = "reason",
        value_parser = names(Reason::ALL.iter().map(|reason| reason.name())),
        hide_possible_values = true
    )]
    reasons: Vec<String>,
    /// Only those going to this port.
    #[arg(long)]
    port: Option<u16>,
    /// Only those going to this address, or network.
    #[arg(long, value_name = "CIDR", value_parser = network)]
    dst: Option<IpNet>,
    /// End after so many decisions.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// How to print.
    #[arg(short, long = "output", value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(flatten)]
    agent: RunDir,
}

/// Output formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// One JSON object a line.
    Json,
}

/// Prints decisions as they are made, until interrupted.
pub fn run(args: Args) -> Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?
        .block_on(trace(args))
}

async fn trace(args: Args) -> Result<ExitCode> {
    let output = args.output;
    // Before anything is said to have begun: who ends it then is to be told what was lost.
    let mut ends = [
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    ];
    let path = admin::socket_path(&args.agent.run_dir);
    let stream = UnixStream::connect(&path).await;
    let (reader, mut writer) = stream.with_context(|| admin::no_agent(&path))?.into_split();
    writer.write_all(&filter(args).request()?).await?;
    let mut lines = BufReader::new(reader).lines();
    let first = timeout(PATIENCE, lines.next_line()).await;
    let first = first.with_context(|| format!("the agent did not answer within {PATIENCE:?}"))?;
    Line::has_started(Line::read(first)?)?;
    eprintln!("tracing; end it with ^C");
    if output == Output::Table && !print(&header())? {
        return Ok(ExitCode::SUCCESS);
    }
    let (count, lost) = follow(&mut lines, writer, output, &mut ends).await?;
    let Lost { kernel, agent } = lost;
    eprintln!("{count} decisions; lost: {kernel} in the kernel, {agent} in the agent");
    Ok(ExitCode::SUCCESS)
}

/// Prints what comes, until the agent ends it, or the user does. Returns how many decisions there
/// were, and what was lost.
async fn follow(
    lines: &mut Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
    output: Output,
    ends: &mut [Signal; 2],
) -> Result<(u64, Lost)> {
    let [interrupt, terminate] = ends;
    let mut writer = Some(writer);
    let (mut count, mut lost) = (0, Lost::default());
    loop {
        let is_ending = writer.is_none();
        let line = tokio::select! {
            // Asked to end: the agent is told, and says what was lost.
            _ = interrupt.recv(), if !is_ending => { writer = None; continue }
            _ = terminate.recv(), if !is_ending => { writer = None; continue }
            line = lines.next_line() => Line::read(line)?,
            () = tokio::time::sleep(PATIENCE), if is_ending => None,
        };
        match line {
            Some(Line::Decision(record)) => {
                count += 1;
                let text = match output {
                    Output::Table => row(&record),
                    Output::Json => serde_json::to_string(&record)?,
                };
                if !print(&text)? {
                    return Ok((count, lost));
                }
            }
            Some(Line::Lost(now)) => lost = now,
            Some(Line::Started) => {}
            Some(Line::Error(message)) => bail!(message),
            None => return Ok((count, lost)),
        }
    }
}

/// Prints a line at once. False: nobody reads any more.
fn print(line: &str) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        result => result.map(|()| true).context("writing to stdout"),
    }
}

fn filter(args: Args) -> Filter {
    Filter {
        workload: args.workload,
        direction: args.direction,
        paths: args.paths,
        reasons: args.reasons,
        port: args.port,
        destination: args.dst,
        count: args.count,
    }
}

fn header() -> String {
    columns([
        "TIME",
        "WORKLOAD",
        "DIRECTION",
        "PATH",
        "REASON",
        "SOURCE",
        "DESTINATION",
        "TARGET",
        "DECLARED",
    ])
}

fn row(record: &Record) -> String {
    let time = record.time.to_string();
    // To the millisecond: `2026-01-31T12:00:00.123Z`.
    let time = time
        .get(..23)
        .map_or(time.clone(), |time| format!("{time}Z"));
    let none = || "-".to_owned();
    let source = record.source.map_or_else(none, |source| source.to_string());
    let targets = match record.targets.as_slice() {
        [] => none(),
        targets => targets.join(","),
    };
    let declared = record.resource.as_ref().map_or_else(none, |resource| {
        let name = [&*resource.namespace, &*resource.name].join("/");
        // A MeshConfig has no name.
        let name = name.trim_matches('/');
        let place = format!("({}:{})", resource.file, resource.line);
        let parts = [&*resource.kind, name, &*record.field, &*place];
        let parts = parts.into_iter().filter(|part| !part.is_empty());
        parts.collect::<Vec<_>>().join(" ")
    });
    let workload = record.workload.as_deref().unwrap_or("?");
    printable(&columns([
        &time,
        workload,
        &record.direction,
        &record.path,
        &record.reason,
        &source,
        &record.destination.to_string(),
        &targets,
        &declared,
    ]))
}

/// Wide enough for most: nobody knows what is to come.
fn columns(cells: [&str; 9]) -> String {
    let [
        time,
        workload,
        direction,
        path,
        reason,
        source,
        destination,
        target,
        declared,
    ] = cells;
    format!(
        "{time:<24} {workload:<28} {direction:<9} {path:<6} {reason:<18} {source:<21} \
         {destination:<21} {target:<21} {declared}"
    )
}

fn names(
    names: impl IntoIterator<Item = &'static str>,
) -> impl clap::builder::TypedValueParser<Value = String> {
    PossibleValuesParser::new(names).map(|name| name)
}

fn network(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    address
        .or_else(|_| text.parse())
        .map_err(|_| format!("`{text}` is no address and no network, such as 10.96.0.0/16"))
}
