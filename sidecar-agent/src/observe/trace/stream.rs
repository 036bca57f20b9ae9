//! One client's connection: a request, and then lines of JSON until either side ends it.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::{ReadHalf, WriteHalf},
    time::{MissedTickBehavior, interval},
};

use super::{
    filter::Filter,
    hub::{Hub, Lost, Subscription},
    record::Record,
};

/// How often a client is told what was lost, if that has changed.
const TELL_LOST: Duration = Duration::from_secs(1);

/// A line from the agent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Line {
    /// Tracing has begun: every decision from now on is told, or counted as lost.
    Started,
    /// A decision.
    Decision(Box<Record>),
    /// What was lost so far. The last line.
    Lost(Lost),
    /// Why nothing is traced.
    Error(String),
}

impl Line {
    /// Reads a line; `None`: there is none any more.
    ///
    /// # Errors
    /// If it could not be read, or is not understood.
    pub fn read(line: std::io::Result<Option<String>>) -> Result<Option<Self>> {
        let line = line.context("reading from the agent")?;
        line.map(|line| {
            serde_json::from_str(&line)
                .context("the agent's line is not understood: is it of another version?")
        })
        .transpose()
    }

    /// Whether this says that tracing has begun.
    ///
    /// # Errors
    /// If it says something else: what is wrong.
    pub fn has_started(line: Option<Self>) -> Result<()> {
        match line {
            Some(Self::Started) => Ok(()),
            Some(Self::Error(error)) => bail!(error),
            _ => bail!("the agent gave no answer that is understood: is it of another version?"),
        }
    }
}

/// Serves a client until it ends its side, or has got as many as it wanted.
///
/// # Errors
/// If it is gone. That it is served no more is told to it.
pub async fn serve(
    hub: &Hub,
    filter: Filter,
    mut reader: ReadHalf<'_>,
    mut writer: WriteHalf<'_>,
) -> Result<()> {
    let count = filter.count;
    let mut subscription = match hub.subscribe(filter).await {
        Ok(subscription) => subscription,
        Err(error) => return tell(&mut writer, &Line::Error(format!("{error:#}"))).await,
    };
    tell(&mut writer, &Line::Started).await?;
    stream(&mut subscription, count, &mut reader, &mut writer).await?;
    let lost = subscription.lost().await?;
    // What was decided before the client ended its side.
    let mut left = Vec::new();
    if count.is_none() {
        while let Ok(decision) = subscription.decisions.try_recv() {
            left.push(decision);
        }
    }
    drop(subscription);
    for decision in left {
        write(&mut writer, &decision).await?;
    }
    tell(&mut writer, &Line::Lost(lost)).await
}

async fn stream(
    subscription: &mut Subscription,
    count: Option<u64>,
    reader: &mut ReadHalf<'_>,
    writer: &mut WriteHalf<'_>,
) -> Result<()> {
    let mut told = Lost::default();
    let mut written = 0_u64;
    let mut ticks = interval(TELL_LOST);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = [0_u8; 64];
    while count.is_none_or(|count| written < count) {
        tokio::select! {
            decision = subscription.decisions.recv() => match decision {
                Some(decision) => {
                    write(writer, &decision).await?;
                    written += 1;
                }
                None => return Ok(()),
            },
            // It has nothing more to say but that it ends.
            read = reader.read(&mut heard) => if read? == 0 {
                return Ok(());
            },
            _ = ticks.tick() => {
                let lost = subscription.lost().await?;
                if lost != told {
                    tell(writer, &Line::Lost(lost)).await?;
                    told = lost;
                }
            }
        }
    }
    Ok(())
}

/// Writes a decision, which is JSON already.
async fn write(writer: &mut WriteHalf<'_>, decision: &Arc<str>) -> Result<()> {
    let line = format!("{{\"decision\":{decision}}}\n");
    Ok(writer.write_all(line.as_bytes()).await?)
}

async fn tell(writer: &mut WriteHalf<'_>, line: &Line) -> Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    Ok(writer.write_all(&text).await?)
}
