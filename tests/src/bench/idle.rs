//! What a relay keeps for connections over which nothing goes.

use std::fs;

use anyhow::Context as _;

use super::{
    Bench,
    bytes::{BULK, Others},
    load::{
        At, LoadServer,
        wire::{Order, unit},
    },
    metric::Metric,
    side::Side,
    world::{ENDS, Site, World},
};
use crate::{
    poll::{DEADLINE, poll_result},
    soak::resident,
};

/// Connections that are there before.
const FIRST: u32 = 16;

/// Measures memory and pipes of ours and of the others.
///
/// # Errors
/// When a relay does not work.
pub fn measure(bench: &mut Bench<'_>, world: &World) -> anyhow::Result<()> {
    let others = Others::start(world)?;
    let connections = bench.plan.idle;
    let server = |receive| {
        let at = At::Tcp(world.target());
        LoadServer::of_bytes(world.place(Site::Peer), ENDS, at, receive, 1)
    };
    let relays = others.relays(world)?;
    for ((site, pid), mut side) in relays.into_iter().zip(others.sides(world)?) {
        let suffix = match site {
            Site::Relay => String::new(),
            site => format!("_{}", Site::ALL[site as usize].1.replace('-', "_")),
        };
        let echo = server(1)?;
        // What the first ones make it allocate is no connection's.
        open(&mut side, FIRST)?;
        let (before, pipes) = (resident(pid)?, pipes_of(pid)?);
        open(&mut side, FIRST + connections)?;
        let grown = resident(pid)?.saturating_sub(before) * 1024;
        #[expect(clippy::cast_precision_loss, reason = "figures")]
        let each = grown as f64 / f64::from(connections);
        let name = format!("relay_idle.bytes_per_connection{suffix}");
        bench.add(Metric::single(name, "bytes", each));

        // In bulk it takes pipes. Those it keeps are counted when it had its time to give them back.
        drop(echo);
        let _sink = server(unit(BULK))?;
        side.open(8)?;
        let millis = bench.plan.millis;
        let (size, unit) = (BULK, unit(BULK));
        side.sample(Order::Stream { size, unit, millis })?;
        let _ = poll_result(DEADLINE / 10, "pipes to be given back", || {
            anyhow::ensure!(pipes_of(pid)? <= pipes);
            Ok(())
        });
        let kept = pipes_of(pid)?.saturating_sub(pipes);
        let name = format!("relay_idle.pipes{suffix}");
        bench.add(Metric::single(name, "pipe ends", f64::from(kept)));
    }
    Ok(())
}

/// Makes connections, and sends a byte there and back over each: then the relay has both ends.
fn open(side: &mut Side, connections: u32) -> anyhow::Result<()> {
    side.open(connections)?;
    side.sample(Order::RoundTrips { size: 1, millis: 0 })?;
    Ok(())
}

/// Ends of pipes that a process holds.
fn pipes_of(pid: u32) -> anyhow::Result<u32> {
    let dir = format!("/proc/{pid}/fd");
    let descriptors = fs::read_dir(&dir).with_context(|| format!("cannot list {dir}"))?;
    let pipes = descriptors.flatten().filter(|descriptor| {
        fs::read_link(descriptor.path())
            .is_ok_and(|target| target.to_string_lossy().starts_with("pipe:"))
    });
    Ok(u32::try_from(pipes.count())?)
}
