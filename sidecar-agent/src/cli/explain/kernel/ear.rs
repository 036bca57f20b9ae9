//! Hearing of one decision.

use std::{
    io::{BufRead as _, BufReader, Lines, Write as _},
    net::{Shutdown, SocketAddr},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use sidecar_common::{Endpoint, Path as Travels, Reason};

use super::Decided;
use crate::{
    dataplane::Tap,
    explain::Connection,
    observe::{
        admin,
        trace::{Filter, Line},
    },
    resolve::ResolvedWorkload,
};

/// How long the agent may take for its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who hears decisions: the ring has one reader only.
pub(super) enum Ear {
    /// Nobody else reads it.
    Ring(Box<Tap>),
    /// The agent does.
    Agent(UnixStream, Lines<BufReader<UnixStream>>),
}

impl Ear {
    /// Listens at the ring.
    pub(super) fn ring(mut tap: Tap) -> Result<Self> {
        // What nobody took.
        while tap.take().is_some() {}
        tap.switch(true)?;
        Ok(Self::Ring(Box::new(tap)))
    }

    /// Has the agent tell what it hears.
    pub(super) fn agent(
        run_dir: &Path,
        workload: &ResolvedWorkload,
        connection: &Connection<'_>,
    ) -> Result<Self> {
        let destination = connection.dst;
        let path = admin::socket_path(run_dir);
        let stream = UnixStream::connect(&path).with_context(|| admin::no_agent(&path))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let filter = Filter {
            workload: Some(workload.to_string()),
            direction: Some(connection.direction.name().to_owned()),
            port: Some(destination.port()),
            destination: Some(destination.ip().to_canonical().into()),
            ..Filter::default()
        };
        (&stream).write_all(&filter.request()?)?;
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        Line::has_started(next(&mut lines)?)?;
        Ok(Self::Agent(stream, lines))
    }

    /// The decision about the connection from this port; `None`: there was none.
    pub(super) fn hear(self, port: u16, destination: SocketAddr) -> Result<Option<Decided>> {
        match self {
            Self::Ring(mut tap) => {
                tap.switch(false)?;
                // It is there already: connect(2) has returned.
                while let Some(event) = tap.take() {
                    let to = Endpoint::new(destination.ip().into(), destination.port());
                    if event.source.port == port && event.destination == to {
                        let name =
                            |name: Option<&'static str>| name.unwrap_or("unknown").to_owned();
                        let path = Travels::from_number(event.path).map(Travels::name);
                        let reason = Reason::from_number(event.reason).map(Reason::name);
                        let (path, reason) = (name(path), name(reason));
                        return Ok(Some(Decided { path, reason }));
                    }
                }
                Ok(None)
            }
            Self::Agent(stream, mut lines) => {
                // What was decided before comes first, then what was lost.
                stream.shutdown(Shutdown::Write)?;
                let mut lost = 0;
                while let Some(line) = next(&mut lines)? {
                    match line {
                        Line::Decision(record)
                            if record.source.is_some_and(|source| source.port() == port) =>
                        {
                            let (path, reason) = (record.path, record.reason);
                            return Ok(Some(Decided { path, reason }));
                        }
                        Line::Lost(now) => lost = now.kernel + now.agent,
                        Line::Error(error) => bail!(error),
                        Line::Decision(_) | Line::Started => {}
                    }
                }
                if lost != 0 {
                    bail!(
                        "{lost} decisions were lost, the one that was asked for among them; try again"
                    );
                }
                Ok(None)
            }
        }
    }
}

fn next(lines: &mut Lines<BufReader<UnixStream>>) -> Result<Option<Line>> {
    Line::read(lines.next().transpose())
}
