//! The end that connects.

use std::{
    io::{self, BufRead as _, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use sidecar_tests::bench::load::wire::{Done, Order};

use super::connections::{Connections, Work};
use crate::connect::print;

pub fn run() -> anyhow::Result<()> {
    let mut open = None;
    for line in io::stdin().lock().lines() {
        let line = line.context("cannot read standard input")?;
        let order = serde_json::from_str(&line).with_context(|| format!("no order: {line}"))?;
        let started = Instant::now();
        let operations = obey(order, &mut open).with_context(|| format!("{order:?}"))?;
        let nanos = u64::try_from(started.elapsed().as_nanos())?;
        print(&Done { nanos, operations })?;
    }
    Ok(())
}

fn obey(order: Order, open: &mut Option<Connections>) -> anyhow::Result<u64> {
    let time = |millis| Instant::now() + Duration::from_millis(u64::from(millis));
    let (work, millis) = match order {
        Order::Connect {
            address,
            times,
            exchange,
        } => {
            for _ in 0..times {
                visit(address, exchange)?;
            }
            return Ok(times.into());
        }
        Order::Open {
            address,
            connections,
        } => {
            *open = None;
            *open = Some(Connections::open(address, connections)?);
            return Ok(connections.into());
        }
        Order::RoundTrips { size, millis } => (Work::round_trips(size), millis),
        Order::Requests { millis } => {
            let open = open.as_mut().context("no connections are open")?;
            (open.requests()?, millis)
        }
        Order::Stream { size, unit, millis } => (Work::stream(size, unit), millis),
    };
    let open = open.as_mut().context("no connections are open")?;
    let pieces = open.work(&work, time(millis))?;
    Ok(pieces * work.worth())
}

fn visit(address: SocketAddr, exchange: bool) -> anyhow::Result<()> {
    let mut connection = TcpStream::connect(address).context("connect")?;
    let mut byte = [1];
    if exchange {
        connection.write_all(&byte).context("write")?;
    }
    let received = connection.read(&mut byte).context("read")?;
    ensure!(received == usize::from(exchange), "{received} bytes came");
    Ok(())
}
