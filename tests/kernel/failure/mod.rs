//! What becomes of connections when something fails, by the workload's failure policy: each case
//! both ways. A refusal takes no time.

mod no_plan;
mod proxy_gone;
mod proxy_gone_dns;
mod proxy_gone_inbound;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::ensure;
use rustix::io::Errno;
use sidecar_tests::{Kind, Probe, apps::Seen};

use crate::plan::at;

/// Within this time whoever is refused knows it.
const PROMPT: Duration = Duration::from_secs(1);

/// Makes a call that must not take long, whatever becomes of it.
fn promptly<T>(what: &str, call: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let started = Instant::now();
    let outcome = call()?;
    let elapsed = started.elapsed();
    ensure!(elapsed < PROMPT, "{what} took {elapsed:?}");
    Ok(outcome)
}

/// Waits until a client runs: how long that takes is not what is asked.
fn awake(client: &Probe) -> anyhow::Result<()> {
    client.socket(Kind::Udp4)??;
    Ok(())
}

/// Who answers at each of these addresses.
fn answered(client: &Probe, addresses: &[&str], name: &str) -> anyhow::Result<()> {
    awake(client)?;
    for address in addresses {
        let seen = promptly(address, || client.visit(at(address)))??;
        assert_eq!(seen.name, name, "{address}: {seen:?}");
    }
    Ok(())
}

/// Nobody answers at any of these addresses.
fn refused(client: &Probe, addresses: &[&str]) -> anyhow::Result<()> {
    awake(client)?;
    for address in addresses {
        let outcome = promptly(address, || client.visit(at(address)))?;
        assert_eq!(outcome, Err(Errno::CONNREFUSED), "{address}");
    }
    Ok(())
}

/// Calls from a source that is not the workload's.
fn visit_from(
    client: &Probe,
    source: &str,
    destination: SocketAddr,
) -> anyhow::Result<Result<Seen, Errno>> {
    awake(client)?;
    promptly(&format!("{source} to {destination}"), || {
        let socket = client.socket(Kind::tcp(destination))??;
        socket.bind(at(source))??;
        Ok(match socket.connect(destination)? {
            Ok(()) => Ok(socket.banner()??),
            Err(errno) => Err(errno),
        })
    })
}
